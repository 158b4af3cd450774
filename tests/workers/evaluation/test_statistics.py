"""Intervals against published values, and the rate at which noise is called steering."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from atomscope.types.evaluation import (
    Chosen,
    Cost,
    EvaluationPoint,
    Measure,
    RandomDirections,
    TargetEvaluation,
)
from atomscope_workers.evaluation import statistics
from atomscope_workers.evaluation.strength import chosen_strength
from atomscope_workers.evaluation.verdicts import with_verdicts

FREE = Cost(kl=0.0, perplexity=1.0)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_is_that_of_the_literature(hits: int, n: int, low: float, high: float) -> None:
    assert statistics.wilson(hits, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_holds_the_share_and_is_mirrored(case: tuple[int, int]) -> None:
    hits, n = case
    low, high = statistics.wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    assert statistics.wilson(n - hits, n) == (pytest.approx(1 - high), pytest.approx(1 - low))


@pytest.mark.parametrize(("hits", "n"), [(1, 0), (3, 2), (-1, 2)])
def test_no_share_has_no_interval(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        statistics.wilson(hits, n)


def test_a_mean_has_the_normal_interval() -> None:
    found = statistics.mean(np.array([-1.0, -2.0, -3.0, -6.0]))
    half = 1.959963984540054 * np.std([1, 2, 3, 6], ddof=1) / 2
    assert (found.value, found.hits, found.n) == (-3.0, None, 4)
    assert (found.low, found.high) == (pytest.approx(-3 - half), pytest.approx(-3 + half))
    alone = statistics.mean(np.array([-1.5]))
    assert (alone.low, alone.value, alone.high) == (-1.5, -1.5, -1.5)


def test_a_p_value_is_the_prediction_intervals() -> None:
    """Of n = 21 normal draws: t(0.975, 20) = 2.0860 spreads of the prediction are exceeded by 2.5%."""
    random = np.random.default_rng(0).normal(2.0, 3.0, 21)
    reach = 2.0859634 * np.std(random, ddof=1) * np.sqrt(1 + 1 / 21)
    assert statistics.p_value(float(random.mean() + reach), random.tolist(), 0.0) == pytest.approx(0.025)
    assert statistics.p_value(float(random.mean()), random.tolist(), 0.0) == pytest.approx(0.5)


def test_one_answer_changed_is_no_proof_where_random_directions_change_none() -> None:
    still = [0.0] * 20
    one = statistics.p_value(1 / 24, still, statistics.share_error(1, 0, 24))
    most = statistics.p_value(20 / 24, still, statistics.share_error(20, 0, 24))
    assert one > 0.1
    assert most < 1e-6


@pytest.mark.parametrize(
    ("shift", "percentiles", "q", "expected"),
    [
        (0.5, [0.1, 0.2], 0.05, "steers"),
        (0.5, [0.1, 0.2], 0.051, "weak"),
        (0.5, [0.1, 0.5], 1e-9, "indistinguishable from random"),
        (0.0, [-0.3, -0.2], 1e-9, "indistinguishable from random"),
    ],
)
def test_a_verdict_takes_both_percentiles_and_the_rate(
    shift: float, percentiles: list[float], q: float, expected: str
) -> None:
    assert statistics.verdict(shift, percentiles, q) == expected


@pytest.mark.parametrize(
    ("shift", "percentiles", "q", "expected"),
    [
        (-0.5, [-0.1, -0.2], 0.05, True),
        (-0.5, [-0.1, -0.2], 0.051, False),
        (-0.5, [-0.1, -0.5], 1e-9, False),
        (0.0, [0.3, 0.2], 1e-9, False),
    ],
)
def test_the_other_way_takes_both_percentiles_and_the_rate(
    shift: float, percentiles: list[float], q: float, expected: bool
) -> None:
    assert statistics.steers_back(shift, percentiles, q) is expected


@pytest.mark.parametrize(
    ("shifts", "expected"),
    [
        ({0.1: 0.1, 0.2: 0.3, 0.4: -0.5}, 0.2),
        ({0.1: 0.3, 0.2: 0.3}, 0.1),
        ({0.1: 0.0, 0.2: -0.4, 0.4: -0.4}, 0.2),
        ({0.1: 0.0, 0.2: 0.0}, 0.1),
        ({}, None),
    ],
    ids=["largest ahead", "least of equals", "none ahead", "none at all", "none within the budget"],
)
def test_the_chosen_strength_shifts_most_ahead_or_else_most_back(
    shifts: dict[float, float], expected: float | None
) -> None:
    assert chosen_strength(shifts) == expected


# --------------------------------------------------------------- all together


def measure(value: float) -> Measure:
    return Measure(value=value, low=value, high=value, n=24, hits=None)


def chance(shifts: list[float], shift: float, error: float) -> RandomDirections:
    return RandomDirections(
        match="norm", shifts=shifts, costs=[0.0] * len(shifts),
        percentile_95=statistics.percentile_95(shifts), p_value=statistics.p_value(shift, shifts, error),
    )  # fmt: skip


def point(strength: float, shift: float, norm: list[float], kl: list[float], error: float) -> EvaluationPoint:
    value = measure(shift)
    return EvaluationPoint(
        strength=strength, cost=FREE, inviting=value, neutral=value, overall=value, shift=shift,
        selection_shift=shift, within_budget=True, equal_norm=chance(norm, shift, error),
        equal_kl=chance(kl, shift, error), unrelated=None, q_value=None, verdict=None,
    )  # fmt: skip


def target(points: list[EvaluationPoint]) -> TargetEvaluation:
    up, down = (
        max((item for item in points if item.strength * sign > 0), key=lambda item: item.selection_shift)
        for sign in (1, -1)
    )
    return TargetEvaluation(
        target="1", name=None, verdict=None, auto_up=None, auto_down=None, gain=0.0, curve=[],
        up=Chosen(strength=up.strength, shift=up.shift, kl=0.0, verdict=None),
        down=Chosen(strength=down.strength, shift=down.shift, kl=0.0, verdict=None),
        baseline_inviting=None, baseline_neutral=None, baseline=None, points=points, unrelated=None,
        answers=[], others={},
    )  # fmt: skip


def noise(random: np.random.Generator, prompts: int, share: float, counted: bool) -> TargetEvaluation:
    """A target whose direction is one more random one: three strengths of either sign."""

    def draws(count: int) -> np.ndarray:
        if not counted:
            return random.normal(0, 0.1, count)
        return (random.binomial(prompts, share, count) - round(share * prompts)) / prompts

    points: list[EvaluationPoint] = []
    for strength in (0.1, 0.2, 0.4):
        norm, kl = draws(20), draws(20)
        value = float(draws(1)[0])
        for sign in (1, -1):
            hits = round(share * prompts) + round(value * prompts)
            error = statistics.share_error(max(hits, 0), round(share * prompts), prompts) if counted else 0.0
            points.append(
                point(sign * strength, sign * value, (sign * norm).tolist(), (sign * kl).tolist(), error)
            )
    return target(points)


@pytest.mark.parametrize(
    ("counted", "share"), [(False, 0.0), (True, 0.5), (True, 0.1)], ids=["log-probability", "half", "rare"]
)
def test_noise_is_called_steering_no_more_often_than_the_rate(counted: bool, share: float) -> None:
    """All targets of an evaluation are noise: in at most 5% of evaluations is any called `steers`.

    Nor is any called `steers the other way` more often.
    """
    random, evaluations = np.random.default_rng(7), 150
    wrong = {"steers": 0, "steers the other way": 0}
    for _ in range(evaluations):
        found = with_verdicts([noise(random, 24, share, counted) for _ in range(2)])
        told = {point.verdict for item in found for point in item.points}
        for verdict in wrong:
            wrong[verdict] += verdict in told
    # Expected are at most 7.5 of either; 16 or more would come of fewer than one time in a hundred.
    assert max(wrong.values()) < 16


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.5, 2.0))
def test_a_shift_far_beyond_noise_steers_among_noise(seed: int, shift: float) -> None:
    random = np.random.default_rng(seed)
    real = noise(random, 24, 0.5, counted=True)
    first = real.points[0]
    strong = point(
        first.strength, shift, random.normal(0, 0.05, 20).tolist(), random.normal(0, 0.05, 20).tolist(), 0.1
    )
    found = with_verdicts([target([strong, *real.points[1:]]), noise(random, 24, 0.5, counted=True)])
    assert found[0].points[0].verdict == "steers"
    assert found[0].up is not None
    assert (found[0].up.verdict, found[0].verdict) == ("steers", "steers")


def test_q_values_are_corrected_over_all_targets_and_of_the_larger_p_value() -> None:
    far, near = [0.0, 0.1] * 10, [0.0, 0.4] * 10
    alone = with_verdicts([target([point(0.1, 0.5, far, near, 0.0), point(-0.1, 0.0, far, far, 0.0)])])[0]
    first = alone.points[0]
    assert first.equal_kl is not None
    assert first.q_value == pytest.approx(2 * first.equal_kl.p_value)
    untested = replace(alone.points[1], equal_norm=None, equal_kl=None, q_value=None, verdict=None)
    beside = with_verdicts([replace(alone, verdict=None, points=[alone.points[0], untested])])[0]
    assert beside.points[0].q_value == pytest.approx(first.equal_kl.p_value)
    assert beside.points[1].verdict is None
    assert beside.down is not None
    assert beside.down.verdict is None
