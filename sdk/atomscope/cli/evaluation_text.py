"""An evaluation for people: a table for each target, what was chosen, and answers side by side."""

from __future__ import annotations

from collections.abc import Iterator

from atomscope.cli.tables import card, columns, time_text
from atomscope.text import counted, visible
from atomscope.types.evaluation import (
    Answer,
    Chosen,
    EvaluationPoint,
    EvaluationResult,
    Measure,
    RandomDirections,
    TargetEvaluation,
)

_OTHERS = 5
_CHARACTERS = 300
"""Of a prompt or an answer."""
_HEADER = (
    "strength",
    "KL",
    "inviting",
    "neutral",
    "shift",
    "random norm",
    "random KL",
    "unrelated",
    "q",
    "verdict",
)


def evaluation_text(found: EvaluationResult) -> str:
    """Blocks of lines, one empty line between two; foreign text is escaped."""
    cost = found.baseline_cost
    blocks = [
        card(
            [
                (
                    "neutral",
                    f"{counted(found.neutral_documents, 'document')} of "
                    f"{counted(found.n_neutral_tokens, 'token')}, perplexity {cost.perplexity:.3g} unsteered",
                ),
                ("took", time_text(found.seconds)),
            ]
        )
    ]
    for target in found.targets:
        blocks += _target(target)
    return "\n\n".join(blocks)


def _target(found: TargetEvaluation) -> Iterator[str]:
    title = found.target if found.name is None else f"{found.target} {found.name}"
    yield visible(title) + ("" if found.verdict is None else f": {found.verdict}")
    yield _points(found) if found.points else _curve(found)
    rows = (
        [] if not found.points else [("up", _chosen(found, found.up)), ("down", _chosen(found, found.down))]
    )
    yield card(
        [
            *rows,
            ("auto up", _auto(found.auto_up)),
            ("auto down", _auto(found.auto_down)),
            ("gain", _gain(found)),
            *([] if found.unrelated is None else [("unrelated", f"atom {found.unrelated}")]),
        ]
    )
    for answer in found.answers:
        yield _answer(answer)
    if found.others:
        moved = sorted(found.others.items(), key=lambda item: -abs(item[1]))[:_OTHERS]
        yield "others most moved by the chosen strength down, nats per token\n" + card(
            [(key, f"{change:+.3f}") for key, change in moved]
        )


def _points(found: TargetEvaluation) -> str:
    rows = [
        _point(found, point, {side.strength for side in (found.up, found.down) if side})
        for point in found.points
    ]
    if found.baseline_inviting is not None and found.baseline_neutral is not None:
        base = ("0", "0", _measure(found.baseline_inviting), _measure(found.baseline_neutral))
        place = sum(point.strength < 0 for point in found.points)
        rows.insert(place, [*base, "", "", "", "", "", "unsteered"])
    return columns(_HEADER, rows)


def _point(found: TargetEvaluation, point: EvaluationPoint, chosen: set[float]) -> list[str]:
    unrelated = found.unrelated_shift(point)
    shares = point.overall.hits is not None
    remarks = [point.verdict or "not compared"]
    if point.strength in chosen:
        remarks.append("chosen")
    if not point.within_budget:
        remarks.append("over the budget")
    return [
        f"{point.strength:.4g}",
        f"{point.cost.kl:.3f}",
        _measure(point.inviting),
        _measure(point.neutral),
        _shift(point.shift, shares),
        _chance(point.equal_norm, shares),
        _chance(point.equal_kl, shares),
        "" if unrelated is None else _shift(unrelated, shares),
        "" if point.q_value is None else f"{point.q_value:.3g}",
        ", ".join(remarks),
    ]


def _curve(found: TargetEvaluation) -> str:
    return columns(
        ("strength", "KL", "perplexity"),
        [
            (f"{point.strength:.4g}", f"{point.cost.kl:.3f}", f"{point.cost.perplexity:.3g}")
            for point in found.curve
        ],
    )


def _chosen(found: TargetEvaluation, side: Chosen | None) -> str:
    if side is None:
        return "no strength within the budget"
    shares = found.baseline is None or found.baseline.hits is not None
    verdict = "" if side.verdict is None else f": {side.verdict}"
    return f"{side.strength:.4g} shifts by {_shift(side.shift, shares)} at a KL of {side.kl:.3f}{verdict}"


def _gain(found: TargetEvaluation) -> str:
    told = f"{found.gain:+.3f} nats per token of its own documents, the least step up less down"
    return told if found.turns_up else f"{told}: up is no more of them"


def _auto(strength: float | None) -> str:
    return "none within the budget" if strength is None else f"{strength:.4g}"


def _answer(answer: Answer) -> str:
    said = [("unsteered", answer.base), ("up", answer.up), ("down", answer.down)]
    rows = [(label, visible(text, _CHARACTERS)) for label, text in said if text is not None]
    return f"{answer.kind}: {visible(answer.prompt, _CHARACTERS)}\n{card(rows)}"


def _measure(measure: Measure) -> str:
    if measure.hits is None:
        return f"{measure.value:.3f} [{measure.low:.3f}, {measure.high:.3f}]"
    return f"{measure.value:.0%} [{measure.low:.0%}, {measure.high:.0%}]"


def _shift(shift: float, shares: bool) -> str:
    if shares:
        return f"{round(100 * shift, 1) + 0.0:+.1f} points"  # without the sign of -0.0
    return f"{round(shift, 3) + 0.0:+.3f} nats"


def _chance(random: RandomDirections | None, shares: bool) -> str:
    return "" if random is None else _shift(random.percentile_95, shares)
