"""From the tests of all targets and strengths together to verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from atomscope.types.evaluation import Chosen, EvaluationPoint, TargetEvaluation, Verdict
from atomscope_workers.evaluation import statistics
from atomscope_workers.pipeline.evidence import benjamini_hochberg


def with_verdicts(found: Sequence[TargetEvaluation]) -> list[TargetEvaluation]:
    """The targets with the q-value of each of their points, corrected over all, and what follows from them.

    A point's p-value is the larger of those at equal norm and at equal cost. That a direction works the other
    way is a second family of tests, corrected by itself. A target's verdict is the better of its chosen
    strengths', unless it has one already.
    """
    points = [point for item in found for point in item.points]
    q_values = iter(benjamini_hochberg([_p_value(point) for point in points]))
    back = iter(benjamini_hochberg([_p_value_back(point) for point in points]))
    told: list[TargetEvaluation] = []
    for item in found:
        points = [_told(point, next(q_values), next(back)) for point in item.points]
        verdicts: dict[float, Verdict | None] = {point.strength: point.verdict for point in points}
        up, down = _chosen(item.up, verdicts), _chosen(item.down, verdicts)
        verdict = item.verdict
        if verdict is None:
            verdict = statistics.better([side.verdict for side in (up, down) if side is not None])
        told.append(replace(item, points=points, up=up, down=down, verdict=verdict))
    return told


def _p_value(point: EvaluationPoint) -> float | None:
    if point.equal_norm is None or point.equal_kl is None:
        return None
    return max(point.equal_norm.p_value, point.equal_kl.p_value)


def _p_value_back(point: EvaluationPoint) -> float | None:
    """Of the opposite tail: t is continuous, so the two add up to 1."""
    if point.equal_norm is None or point.equal_kl is None:
        return None
    return 1 - min(point.equal_norm.p_value, point.equal_kl.p_value)


def _told(point: EvaluationPoint, q_value: float | None, back: float | None) -> EvaluationPoint:
    if q_value is None or back is None or point.equal_norm is None or point.equal_kl is None:
        return point
    verdict = statistics.verdict(
        point.shift, [point.equal_norm.percentile_95, point.equal_kl.percentile_95], q_value
    )
    least = [statistics.percentile_5(item.shifts) for item in (point.equal_norm, point.equal_kl)]
    if statistics.steers_back(point.shift, least, back):
        verdict = "steers the other way"
    return replace(point, q_value=q_value, verdict=verdict)


def _chosen(chosen: Chosen | None, verdicts: Mapping[float, Verdict | None]) -> Chosen | None:
    return None if chosen is None else replace(chosen, verdict=verdicts[chosen.strength])
