"""How many padded tokens a micro-batch may have: found by trying, doubling up and bisecting down.

What a batch takes is not only its tokens: many short documents hold a gradient each, few long ones attend
over many tokens. So a budget is tried on documents of more than one length (`stages/token_budget.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from atomscope_workers.datasets.documents import TokenizedDocument

LEAST = 256
"""Tokens of the smallest budget that is tried."""
STEP = 64
"""Budgets are multiples of it."""
PRECISION = 8
"""Bisecting ends when what fits and what does not are apart by this part of what fits."""

Attempt = Callable[[int], int]
"""Runs batches of so many tokens; the bytes they took at their peak. Raises `torch.OutOfMemoryError`."""


def largest_budget(
    attempt: Attempt, *, most: int, room: Callable[[], int] | None = None, least: int = LEAST
) -> int | None:
    """The largest budget up to `most` that fits, within an eighth; None when not even `least` does.

    `room` tells how many bytes a batch may take. None is tried then that would take more, by what the last
    one that fitted took: a host that runs out of memory ends processes rather than requests.
    """
    fits, taken = 0, 0

    def tried(tokens: int) -> bool:
        nonlocal fits, taken
        if room is not None and fits and taken * tokens > room() * fits:
            return False
        try:
            used = attempt(tokens)
        except torch.OutOfMemoryError:
            return False
        if room is not None and used > room():
            return False
        fits, taken = tokens, used
        return True

    tokens = min(least, most)
    while tried(tokens):
        if tokens == most:
            return tokens
        tokens = min(2 * tokens, most)
    if not fits:
        return None
    failed = tokens
    while failed - fits > max(STEP, fits // PRECISION):
        middle = (fits + failed) // 2 // STEP * STEP
        if middle <= fits:
            break
        if not tried(middle):
            failed = middle
    return fits


def round_budget(found: int) -> int:
    """The largest budget up to `found` that is a power of two or one and a half of one; `LEAST` below that.

    Batches are part of what a stored shard is known by. Workers of one kind, of whose memory a little more or
    less is free, thus mostly come to the same ones.
    """
    power = 1 << (found.bit_length() - 1)
    return max(LEAST, power + power // 2 if found >= power + power // 2 else power)


def probe_documents(tokens: int, length: int, vocabulary: int, most: int) -> list[TokenizedDocument]:
    """At most `most` documents that fill a budget, `length` tokens of each read: all predict a target.

    So that no document of that length takes more.
    """
    ids = np.random.default_rng(0).integers(0, vocabulary, length + 1).astype(np.int32)
    mask = np.arange(length + 1) > 0
    count = max(1, min(most, tokens // length))
    return [TokenizedDocument(row, ids, mask) for row in range(count)]
