"""How much better a Gaussian describes values behind a power transformation than as they are.

The transformation is that of Yeo and Johnson (2000), its power the likeliest. The negative log-likelihood is
convex in the power (Marchand et al. 2022, "SecureFedYJ"), so that golden sections close in on it, for all
columns at once. `sklearn.preprocessing.PowerTransformer` finds the same powers one column after another.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

_TOLERANCE = 1e-4
"""Of the power. About the likeliest, the log-likelihood of N values then changes by some N * 1e-8 nats."""
_LARGEST_EXPONENT = 150.0
"""Of a transformed value: its square is a number still."""
_GOLDEN = (5**0.5 - 1) / 2

_Gain = Callable[[torch.Tensor], torch.Tensor]
"""From a power for each column (K,) to nats (K,)."""


def gain_of_skewness(values: torch.Tensor) -> torch.Tensor:
    """Nats (K,) by which one Gaussian fits standard columns (N, K) better behind the likeliest power.

    All are float64.
    """
    if not values.numel():
        return values.new_zeros(values.shape[1])
    signed = values.sign() * values.abs().log1p()
    # The transformation's own density: the logarithm of its slope is (power - 1) * sign * log(1 + |x|).
    slope = signed.sum(0)

    def gain(power: torch.Tensor) -> torch.Tensor:
        spread = _transformed(signed, power).var(0, correction=0)
        return (power - 1) * slope - 0.5 * len(values) * spread.clamp(min=1e-300).log()

    largest = _LARGEST_EXPONENT / signed.abs().amax(0)
    return gain(_highest(gain, 2 - largest, largest)).clamp(min=0)


def _transformed(signed: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    """((1 + x)^p - 1) / p where x is positive; where not, the same of -x, with 2 - p and turned about.

    `signed` is log(1 + |x|) with the sign of x.
    """
    exponent = torch.where(signed >= 0, power, power - 2)
    changed = (exponent * signed).expm1_() / exponent
    return torch.where(exponent == 0, signed, changed)


def _highest(gain: _Gain, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Where between `low` and `high` (K,) a concave function of each column is highest."""
    lower, upper = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_lower, at_upper = gain(lower), gain(upper)
    while (high - low).max() > _TOLERANCE:
        right = at_lower < at_upper
        low, high = torch.where(right, lower, low), torch.where(right, high, upper)
        kept, at_kept = torch.where(right, upper, lower), torch.where(right, at_upper, at_lower)
        tried = torch.where(right, low + _GOLDEN * (high - low), high - _GOLDEN * (high - low))
        at_tried = gain(tried)
        lower, upper = torch.where(right, kept, tried), torch.where(right, tried, kept)
        at_lower, at_upper = torch.where(right, at_kept, at_tried), torch.where(right, at_tried, at_kept)
    return (low + high) / 2
