"""The evaluation of one target: cost, choice, report, chance, and what goes with it.

The order keeps choice and report apart: strengths are compared on the selection half of the prompts, and
everything that is told, random directions included, is measured on the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from atomscope.bundle import Bundle
from atomscope.steering import Target
from atomscope.types.evaluation import (
    Answer,
    Chosen,
    EvaluationPoint,
    EvaluationQuery,
    EvaluationTarget,
    Measure,
    TargetEvaluation,
)
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.evaluation.chance import Chance
from atomscope_workers.evaluation.cost import NeutralCost, mean_log_probabilities
from atomscope_workers.evaluation.curve import Budget, Curve
from atomscope_workers.evaluation.directions import Dial, make_dial, unrelated_atom
from atomscope_workers.evaluation.documents import own_documents, touched
from atomscope_workers.evaluation.passes import Passes
from atomscope_workers.evaluation.probe import Probe, Said
from atomscope_workers.evaluation.prompts import Asked, Halves, shown
from atomscope_workers.evaluation.subject import Subject

FEWEST_PROMPTS = 4
"""Of each kind; from fewer nothing is told."""
GAIN_DOCUMENTS = 8
"""Of the target's own documents whose log-probability is measured, and of every other behaviour's."""
_SHARES = (1.0, 0.5, 0.25)
"""Of the largest strength within the budget, that `auto` tries."""


@dataclass(frozen=True)
class Bench:
    """What all targets of an evaluation share."""

    bundle: Bundle
    query: EvaluationQuery
    subject: Subject
    neutral: NeutralCost
    budget: Budget
    tokens: Mapping[int, TokenizedDocument]
    passes: Passes


@dataclass(frozen=True)
class Invited:
    """A target with its prompts."""

    asked: EvaluationTarget
    target: Target
    inviting: Halves
    neutral: Halves
    probe: Probe | None
    """None where only what steering costs is measured."""

    @property
    def enough(self) -> bool:
        return min(len(self.inviting.all), len(self.neutral.all)) >= FEWEST_PROMPTS


def evaluate_target(bench: Bench, invited: Invited) -> TargetEvaluation:
    """What is found of one target, but for the verdicts, which need all of them: those are None.

    Raises `InvalidInput` as what it calls does.
    """
    query = bench.query
    listed = query.strengths if isinstance(query.strengths, list) else []
    dial = make_dial(bench.bundle, invited.target, query.power, query.unit, listed)
    curve = Curve(dial, bench.neutral, bench.budget, bench.passes.done)
    up, down = curve.largest(1), curve.largest(-1)
    strengths = sorted(listed or [share * end for end in (up, down) if end is not None for share in _SHARES])
    for strength in strengths:
        curve.at(strength)
    gain = _gain(bench, invited.target, dial, strengths or list(curve.known))
    found = TargetEvaluation(
        target=invited.target.key,
        name=invited.asked.name,
        verdict=None,
        up=None,
        down=None,
        auto_up=up,
        auto_down=down,
        gain=gain,
        curve=curve.points(),
        baseline_inviting=None,
        baseline_neutral=None,
        baseline=None,
        points=[],
        unrelated=None,
        answers=[],
        others={},
    )
    if invited.probe is None or not invited.enough:
        return found
    return _measured(bench, invited, invited.probe, curve, strengths, found)


# ------------------------------------------------------------------ with prompts


@dataclass(frozen=True)
class _Half:
    """A half of the prompts, at one strength."""

    inviting: Said
    neutral: Said


def _measured(
    bench: Bench,
    invited: Invited,
    probe: Probe,
    curve: Curve,
    strengths: Sequence[float],
    found: TargetEvaluation,
) -> TargetEvaluation:
    query, dial = bench.query, curve.dial

    def ask(strength: float | None, inviting: list[Asked], neutral: list[Asked]) -> _Half:
        step = None if strength is None else dial.step(strength * dial.unit)
        return _Half(probe.of(inviting, step), probe.of(neutral, step))

    def overall(half: _Half) -> Said:
        return Said(probe.overall(half.inviting.scores, half.neutral.scores), [])

    def shift(half: _Half, base: _Half, strength: float) -> float:
        difference = float(overall(half).scores.mean() - overall(base).scores.mean())
        return difference if strength > 0 else -difference

    first = (invited.inviting.selection, invited.neutral.selection)
    second = (invited.inviting.report, invited.neutral.report)
    base_first, base = ask(None, *first), ask(None, *second)
    selection = {item: shift(ask(item, *first), base_first, item) for item in strengths}
    chosen = {
        sign: _chosen([item for item in strengths if item * sign > 0 and curve.within(item)], selection)
        for sign in (1, -1)
    }
    reported = {item: ask(item, *second) for item in strengths}
    taken = [item for item in chosen.values() if item is not None]
    tested = set(strengths if query.random_at == "points" else taken)
    together = [*second[0], *second[1]] if probe.counts else second[0]
    chance = Chance(
        purpose=f"random/{invited.target.key}",
        seed=query.seed,
        count=query.random_directions,
        curve=curve,
        probe=probe,
        asked=together,
        baseline=float(overall(base).scores.mean()),
        passed=bench.passes.done,
    )
    other = unrelated_atom(bench.bundle, invited.target, dial, query.seed) if tested else None
    beside = None if other is None else make_dial(bench.bundle, Target("atom", other), query.power, "norm")

    def point(strength: float) -> EvaluationPoint:
        half, cost = reported[strength], curve.at(strength).cost
        scores = overall(half).scores
        moved, error = shift(half, base, strength), probe.error(scores, overall(base).scores)
        run = strength in tested
        return EvaluationPoint(
            strength=strength,
            cost=cost,
            inviting=probe.measure(half.inviting.scores),
            neutral=probe.measure(half.neutral.scores),
            overall=probe.measure(scores),
            shift=moved,
            selection_shift=selection[strength],
            within_budget=bench.budget.holds(cost),
            equal_norm=chance.equal_norm(strength, moved, error) if run else None,
            equal_kl=chance.equal_kl(strength, moved, error) if run else None,
            unrelated=unrelated(strength) if run else None,
            q_value=None,
            verdict=None,
        )

    def unrelated(strength: float) -> Measure | None:
        if beside is None:
            return None
        return probe.measure(probe.of(together, beside.step(strength * dial.unit)).scores)

    points = [point(strength) for strength in strengths]
    sides = [None if item is None else reported[item] for item in (chosen[1], chosen[-1])]
    return replace(
        found,
        up=_taken(chosen[1], points),
        down=_taken(chosen[-1], points),
        curve=curve.points(),
        baseline_inviting=probe.measure(base.inviting.scores),
        baseline_neutral=probe.measure(base.neutral.scores),
        baseline=probe.measure(overall(base).scores),
        points=points,
        unrelated=other,
        answers=_answers(second, base, sides[0], sides[1], query.answers) if probe.counts else [],
        others=_others(bench, invited.target, dial, chosen[-1]),
    )


def _chosen(strengths: Sequence[float], shifts: Mapping[float, float]) -> float | None:
    """The strength of the largest shift; of equal ones the least."""
    return max(strengths, key=lambda item: (shifts[item], -abs(item)), default=None)


def _taken(strength: float | None, points: Sequence[EvaluationPoint]) -> Chosen | None:
    if strength is None:
        return None
    point = next(item for item in points if item.strength == strength)
    return Chosen(strength=strength, shift=point.shift, kl=point.cost.kl, verdict=None)


def _answers(
    asked: tuple[list[Asked], list[Asked]], base: _Half, up: _Half | None, down: _Half | None, count: int
) -> list[Answer]:
    """The first answers of each kind, side by side."""
    found: list[Answer] = []
    for side, prompts in zip(("inviting", "neutral"), asked, strict=True):
        columns: list[list[str] | None] = [
            None if half is None else getattr(half, side).answers for half in (base, up, down)
        ]
        for place, prompt in enumerate(prompts[:count]):
            texts = [None if column is None else column[place] for column in columns]
            found.append(
                Answer(
                    kind=prompt.kind,
                    prompt=shown(prompt.text),
                    base=texts[0] or "",
                    up=texts[1],
                    down=texts[2],
                )
            )
    return found


# ----------------------------------------------------------- what documents say


def _gain(bench: Bench, target: Target, dial: Dial, strengths: Sequence[float]) -> float:
    """Mean log-probability of the target's own documents at the least strength up, less that down."""
    documents = _first(bench, own_documents(bench.bundle, target))
    least = min([item for item in strengths if item > 0] or [abs(item) for item in strengths], default=0.0)
    if not documents or least == 0:
        return 0.0
    means: list[float] = []
    for strength in (least, -least):
        step = dial.step(strength * dial.unit)
        means.append(float(mean_log_probabilities(bench.subject, documents, step).mean()))
        bench.passes.done()
    return means[0] - means[1]


def _others(bench: Bench, target: Target, dial: Dial, strength: float | None) -> dict[str, float]:
    """How the log-probability of every other behaviour's documents changes at a strength down.

    Of the first documents of each on which the target has no strength; a behaviour without any is left out,
    and so is the one that an atom belongs to.
    """
    if strength is None:
        return {}
    own = touched(bench.bundle, target)
    documents: dict[str, list[TokenizedDocument]] = {}
    for item in bench.bundle.behaviours:
        key = Target("behaviour", item.index)
        if key == target or (target.kind == "atom" and target.index in item.behaviour.atoms):
            continue
        rows = [row for row in own_documents(bench.bundle, key) if row not in own]
        if chosen := _first(bench, rows):
            documents[key.key] = chosen
    rows = {item.document: item for part in documents.values() for item in part}
    if not rows:
        return {}
    listed = list(rows.values())
    before = mean_log_probabilities(bench.subject, listed, None)
    bench.passes.done()
    after = mean_log_probabilities(bench.subject, listed, dial.step(strength * dial.unit))
    bench.passes.done()
    change = dict(zip(rows, (after - before).tolist(), strict=True))
    return {key: float(np.mean([change[item.document] for item in part])) for key, part in documents.items()}


def _first(bench: Bench, rows: Sequence[int]) -> list[TokenizedDocument]:
    """The first of these documents that have a target."""
    held = [bench.tokens[row] for row in rows if row in bench.tokens]
    return [item for item in held if item.target_mask.any()][:GAIN_DOCUMENTS]
