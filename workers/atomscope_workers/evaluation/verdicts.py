"""From the tests of all targets and strengths together to verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from atomscope.types.evaluation import Chosen, EvaluationPoint, TargetEvaluation, Verdict
from atomscope_workers.evaluation import statistics
from atomscope_workers.pipeline.evidence import benjamini_hochberg


def with_verdicts(found: Sequence[TargetEvaluation]) -> list[TargetEvaluation]:
    """The targets with the q-value of each of their points, corrected over all, and what follows from them.

    A point's p-value is the larger of those at equal norm and at equal cost. A target's verdict is the better
    of its chosen strengths', unless it has one already.
    """
    q_values = iter(benjamini_hochberg([_p_value(point) for item in found for point in item.points]))
    told: list[TargetEvaluation] = []
    for item in found:
        points = [_told(point, next(q_values)) for point in item.points]
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


def _told(point: EvaluationPoint, q_value: float | None) -> EvaluationPoint:
    if q_value is None or point.equal_norm is None or point.equal_kl is None:
        return point
    percentiles = [point.equal_norm.percentile_95, point.equal_kl.percentile_95]
    return replace(point, q_value=q_value, verdict=statistics.verdict(point.shift, percentiles, q_value))


def _chosen(chosen: Chosen | None, verdicts: Mapping[float, Verdict | None]) -> Chosen | None:
    return None if chosen is None else replace(chosen, verdict=verdicts[chosen.strength])
