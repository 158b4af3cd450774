"""Coherence: the mean pairwise cosine of raw gradients (eq. 3), exact, for any number of documents.

With unit gradients u, the mean over the pairs of a set of n is (|sum u|^2 - n) / (n (n - 1)), and |sum u|^2
adds up over modules. So one pass over the modules serves every set, and holds only the rows some set uses.

A set given in order also yields the coherence of each of its beginnings, from the running sum. The null uses
that: one random order of documents serves every size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

RANDOM_SETS = 200

LoadRows = Callable[[str, NDArray[np.int64]], torch.Tensor]
"""From a parameter name and rising row positions to float32 gradients (rows, any shape)."""


def coherence_by_size(
    sets: Sequence[NDArray[np.int64]], names: Iterable[str], load: LoadRows, norms: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """For every ordered set of row positions, the coherence of its first 1, 2, ... documents.

    The coherence of a single document is 0. `norms` (N,) are the norms of the whole raw gradients.

    Raises `ValueError` when a set holds a document whose gradient is zero: it has no direction.
    """
    if any(not norms[members].all() for members in sets):
        raise ValueError("a document with a zero gradient has no cosine")
    needed = np.unique(np.concatenate([*sets, np.zeros(0, dtype=np.int64)])).astype(np.int64)
    places = [np.searchsorted(needed, members) for members in sets]
    squares = [np.zeros(len(members)) for members in sets]
    scale = torch.from_numpy(norms[needed]).float()[:, None]
    for name in names:
        unit = load(name, needed).flatten(1)
        unit = unit / scale.to(unit.device)
        for item, place in enumerate(places):
            running = unit[torch.from_numpy(place).to(unit.device)].cumsum(0)
            squares[item] += running.square().sum(1, dtype=torch.float64).cpu().numpy()
    return [_mean_cosine(total) for total in squares]


def random_orders(
    candidates: NDArray[np.int64], length: int, seed: int, count: int = RANDOM_SETS
) -> list[NDArray[np.int64]]:
    """`count` seeded draws, in order and without replacement, of `length` candidates or all where fewer."""
    generator = np.random.default_rng(seed)
    size = min(length, len(candidates))
    return [generator.choice(candidates, size=size, replace=False) for _ in range(count)]


def null_of_size(curves: Sequence[NDArray[np.float64]], size: int) -> tuple[float, float]:
    """Mean and 95th percentile of the coherence of random sets of `size` documents; zeros below two."""
    if size < 2 or not curves or len(curves[0]) < size:
        return 0.0, 0.0
    values = np.array([curve[size - 1] for curve in curves])
    return float(values.mean()), float(np.percentile(values, 95))


def _mean_cosine(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    n = np.arange(1, len(squares) + 1)
    return (squares - n) / np.maximum(n * (n - 1), 1) * (n > 1)
