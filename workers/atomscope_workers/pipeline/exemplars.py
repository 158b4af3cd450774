"""Which documents show a range of codes: some of the strongest, and some of every part below."""

from __future__ import annotations

import math

QUANTILES = (1.0, 0.75, 0.5, 0.25)
"""Where each part of the codes begins; it ends where the next begins."""

EACH = 3
"""Documents shown of each part."""


def quantile_places(count: int, each: int = EACH) -> list[tuple[float, list[int]]]:
    """Places in a list of `count` documents, strongest first: up to `each`, the strongest of each part.

    Parts do not overlap, so few documents are spread over the quantiles; empty parts are left out.
    """
    starts = [math.ceil((1 - quantile) * count) for quantile in QUANTILES]
    parts = zip(QUANTILES, starts, [*starts[1:], count], strict=True)
    found = [(quantile, list(range(start, min(start + each, end)))) for quantile, start, end in parts]
    return [part for part in found if part[1]]
