"""Intervals, and the test of one direction against random ones.

A behaviour's shift x is compared with the shifts of n random directions as one more draw would be: if their
shifts are normal, of mean m and standard deviation s,

    t = (x - m) / (s sqrt(1 + 1/n))

has a t distribution of n - 1 degrees of freedom (a prediction interval). Ranks alone cannot do it: beyond all
of 20 draws is p = 1/21, which no correction for several strengths survives. Where random directions change
next to nothing, s would be 0 and one answer changed a proof; so s is no less than the error with which a
share of that many answers, or a mean of that many log-probabilities, is known at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from atomscope.types.evaluation import Measure, Verdict
from atomscope_workers.pipeline.evidence import DISCOVERY_RATE

Z_95 = 1.959963984540054
"""Of a two-sided 95% interval."""


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927). Raises `ValueError` for no answers."""
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"{hits} of {n} is no share")
    share, square = hits / n, Z_95 * Z_95
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = Z_95 / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    # At the ends it reaches them exactly, but for rounding.
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == n else centre + half)


def share(found: NDArray[np.bool_]) -> Measure:
    """The share of answers with a behaviour."""
    hits, n = int(found.sum()), len(found)
    low, high = wilson(hits, n)
    return Measure(value=hits / n, low=low, high=high, n=n, hits=hits)


def mean(values: NDArray[np.float64]) -> Measure:
    """A mean with its normal 95% interval; of one value, that value."""
    value, n = float(values.mean()), len(values)
    half = Z_95 * _standard_error(values)
    return Measure(value=value, low=value - half, high=value + half, n=n, hits=None)


def share_error(hits: int, other_hits: int, n: int) -> float:
    """Standard error of a share of n answers, from two sets of them together.

    One answer with and one without are added, so that none and all have an error too.
    """
    pooled = (hits + other_hits + 1) / (2 * n + 2)
    return math.sqrt(pooled * (1 - pooled) / n)


def mean_error(differences: NDArray[np.float64]) -> float:
    """Standard error of a mean of paired differences."""
    return _standard_error(differences)


def p_value(shift: float, random: Sequence[float], error: float) -> float:
    """One-sided: that a random direction would shift as far; `error` is the least spread.

    Raises `ValueError` for fewer than two random shifts.
    """
    n = len(random)
    if n < 2:
        raise ValueError("a spread needs two random shifts")
    spread = max(float(np.std(random, ddof=1)), error)
    centre = float(np.mean(random))
    if spread == 0:
        return 1.0 if shift <= centre else 0.0
    return float(stats.t.sf((shift - centre) / (spread * math.sqrt(1 + 1 / n)), n - 1))


def percentile_95(random: Sequence[float]) -> float:
    """95th percentile, between the two nearest of them."""
    return float(np.percentile(random, 95))


def percentile_5(random: Sequence[float]) -> float:
    """5th percentile, between the two nearest of them."""
    return float(np.percentile(random, 5))


def verdict(shift: float, percentiles: Sequence[float], q_value: float) -> Verdict:
    """What a shift in the direction asked for is, beside the random ones' 95th percentiles and corrected."""
    if shift <= 0 or any(shift <= item for item in percentiles):
        return "indistinguishable from random"
    return "steers" if q_value <= DISCOVERY_RATE else "weak"


def steers_back(shift: float, percentiles: Sequence[float], q_value: float) -> bool:
    """Whether a shift goes the other way than was asked for: below the random ones' 5th percentiles.

    `q_value` is the corrected one of a shift as low as this.
    """
    return shift < 0 and all(shift < item for item in percentiles) and q_value <= DISCOVERY_RATE


def better(verdicts: Sequence[Verdict | None]) -> Verdict | None:
    """The best of several; None where none was told."""
    order: tuple[Verdict, ...] = (
        "steers",
        "weak",
        "steers the other way",
        "indistinguishable from random",
        "too few prompts",
    )
    return next((item for item in order if item in verdicts), None)


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
