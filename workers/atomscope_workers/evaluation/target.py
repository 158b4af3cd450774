"""The evaluation of one target: cost, choice, report, chance, and what goes with it.

The order keeps choice and report apart: strengths are compared on the selection half of the prompts, and
everything that is told, random directions included, is measured on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from atomscope.bundle import Bundle
from atomscope.steering import Target
from atomscope.types.evaluation import (
    Answer,
    Chosen,
    EvaluationPoint,
    EvaluationQuery,
    EvaluationTarget,
    TargetEvaluation,
)
from atomscope_workers.evaluation.chance import Chance
from atomscope_workers.evaluation.cost import NeutralCost
from atomscope_workers.evaluation.curve import Budget, Curve
from atomscope_workers.evaluation.directions import Dial, make_dial, unrelated_atom
from atomscope_workers.evaluation.material import FEWEST_PROMPTS
from atomscope_workers.evaluation.passes import Passes
from atomscope_workers.evaluation.probe import Probe, Said
from atomscope_workers.evaluation.prompts import Asked, Halves, shown
from atomscope_workers.evaluation.strength import chosen_strength
from atomscope_workers.evaluation.texts import Texts

_SHARES = (1.0, 0.5, 0.25)
"""Of the largest strength within the budget, that `auto` tries."""


@dataclass(frozen=True)
class Bench:
    """What all targets of an evaluation share."""

    bundle: Bundle
    query: EvaluationQuery
    neutral: NeutralCost
    budget: Budget
    texts: Texts
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
    gain = bench.texts.gain(invited.target, dial, strengths or list(curve.known))
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


@dataclass(frozen=True)
class _Sweep:
    """One target's prompts, asked at any strength."""

    probe: Probe
    dial: Dial

    def ask(self, prompts: tuple[list[Asked], list[Asked]], strength: float | None) -> _Half:
        """Inviting and neutral prompts; None asks the unsteered model."""
        step = None if strength is None else self.dial.step(strength * self.dial.unit)
        return _Half(*(self.probe.of(part, step) for part in prompts))

    def overall(self, half: _Half) -> NDArray[np.float64]:
        return self.probe.overall(half.inviting.scores, half.neutral.scores)

    def shift(self, half: _Half, base: _Half, strength: float) -> float:
        """How far a strength moves the mean in its own direction."""
        difference = float(self.overall(half).mean() - self.overall(base).mean())
        return difference if strength > 0 else 0.0 - difference


def _measured(
    bench: Bench,
    invited: Invited,
    probe: Probe,
    curve: Curve,
    strengths: Sequence[float],
    found: TargetEvaluation,
) -> TargetEvaluation:
    """The same with points, the chosen strengths, chance beside them, answers, and what else goes."""
    query, dial = bench.query, curve.dial
    sweep = _Sweep(probe, dial)
    first = (invited.inviting.selection, invited.neutral.selection)
    second = (invited.inviting.report, invited.neutral.report)
    base = sweep.ask(first, None)
    selection = {item: sweep.shift(sweep.ask(first, item), base, item) for item in strengths}
    within = {item: shift for item, shift in selection.items() if curve.within(item)}
    up, down = (
        chosen_strength({item: shift for item, shift in within.items() if item * sign > 0})
        for sign in (1, -1)
    )
    base = sweep.ask(second, None)
    reported = {item: sweep.ask(second, item) for item in strengths}
    tested = strengths if query.random_at == "points" else [item for item in (up, down) if item is not None]
    together = [*second[0], *second[1]] if probe.counts else second[0]
    chance = Chance(
        purpose=f"random/{invited.target.key}",
        seed=query.seed,
        count=query.random_directions,
        curve=curve,
        probe=probe,
        asked=together,
        baseline=float(sweep.overall(base).mean()),
        passed=bench.passes.done,
    )
    other = unrelated_atom(bench.bundle, invited.target, dial, query.seed)
    beside = None if other is None else make_dial(bench.bundle, Target("atom", other), query.power, "norm")

    def point(strength: float) -> EvaluationPoint:
        half, cost = reported[strength], curve.at(strength).cost
        scores, shift = sweep.overall(half), sweep.shift(half, base, strength)
        error = probe.error(scores, sweep.overall(base))
        run = strength in tested
        step = None if beside is None or not run else beside.step(strength * dial.unit)
        return EvaluationPoint(
            strength=strength,
            cost=cost,
            inviting=probe.measure(half.inviting.scores),
            neutral=probe.measure(half.neutral.scores),
            overall=probe.measure(scores),
            shift=shift,
            selection_shift=selection[strength],
            within_budget=bench.budget.holds(cost),
            equal_norm=chance.equal_norm(strength, shift, error) if run else None,
            equal_kl=chance.equal_kl(strength, shift, error) if run else None,
            unrelated=None if step is None else probe.measure(probe.of(together, step).scores),
            q_value=None,
            verdict=None,
        )

    points = [point(strength) for strength in strengths]
    sides = [None if item is None else reported[item] for item in (up, down)]
    return replace(
        found,
        up=_taken(up, points),
        down=_taken(down, points),
        curve=curve.points(),
        baseline_inviting=probe.measure(base.inviting.scores),
        baseline_neutral=probe.measure(base.neutral.scores),
        baseline=probe.measure(sweep.overall(base)),
        points=points,
        unrelated=other,
        answers=_answers(second, base, sides[0], sides[1], query.answers) if probe.counts else [],
        others={} if down is None else bench.texts.others(invited.target, dial, down),
    )


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
