"""Token ids and masks from what a tokenizer gives: which tokens hold characters of which spans."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Spans = Sequence[tuple[int, int]]
"""Begin and end of each, in characters."""


def token_ids(values: Sequence[int]) -> NDArray[np.int32]:
    """Ids as an array of shape (length,)."""
    return np.array(values, dtype=np.int32)


def covered(offsets: Spans, spans: Spans) -> NDArray[np.bool_]:
    """Tokens (length,) that hold a character of a span; a token of no characters is never one."""
    table = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    mask = np.zeros(len(table), dtype=np.bool_)
    for begin, end in spans:
        mask |= (table[:, 1] > begin) & (table[:, 0] < end) & (table[:, 1] > table[:, 0])
    return mask


def within(offsets: Spans, spans: Spans) -> NDArray[np.bool_]:
    """Tokens (length,) that lie wholly within a span."""
    table = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    mask = np.zeros(len(table), dtype=np.bool_)
    for begin, end in spans:
        mask |= (table[:, 0] >= begin) & (table[:, 1] <= end)
    return mask
