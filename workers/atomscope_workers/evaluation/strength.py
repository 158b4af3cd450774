"""The largest strength that a budget allows, and the best of several within it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from atomscope.steering.apply import LARGEST

START = 0.05
"""Norms of the adapter that are tried first."""
LEAST = START / 64
"""Below this none is tried: no weight of a bfloat16 adapter would move."""
HALVINGS = 3
"""Bisections of a doubling: what is found is within 9% of the largest."""


def largest_strength(within: Callable[[float], bool]) -> float | None:
    """The largest strength, in norms of the adapter and above 0, that is `within` a budget.

    Doubles from `START` until one is beyond, or halves until one is within, then bisects in the logarithm.
    Cost is taken to rise with strength; where it does not, what is found is below the first that is beyond.
    None where even `LEAST` is beyond; `LARGEST` where no other is.
    """
    low = high = START
    if within(START):
        while within(high := min(2 * low, LARGEST)):
            low = high
            if low == LARGEST:
                return LARGEST
    else:
        while not within(low := high / 2):
            high = low
            if high <= LEAST:
                return None
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        if within(middle):
            low = middle
        else:
            high = middle
    return low


def chosen_strength(shifts: Mapping[float, float]) -> float | None:
    """The strength of the largest shift; where none is in the direction asked for, of the largest one back.

    Of equal ones the least; None of none. `shifts` are signed: above 0 is in the direction asked for.
    """
    ahead = max(shifts, key=lambda item: (shifts[item], -abs(item)), default=None)
    if ahead is None or shifts[ahead] > 0:
        return ahead
    return max(shifts, key=lambda item: (-shifts[item], -abs(item)))
