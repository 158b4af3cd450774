"""Coherence: the mean pairwise cosine of raw gradients (eq. 3), exact, for any number of documents.

With unit gradients u, the mean over the pairs of a set of n is (|sum u|^2 - n) / (n (n - 1)), and |sum u|^2
adds up over modules. So one pass over the modules serves every set, and holds only the rows some set uses.

A set given in order also yields the coherence of its beginnings. The null uses that: one random order of
documents serves every size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding_bag

RANDOM_SETS = 200
BLOCK_BYTES = 256 * 2**20
"""Most bytes of sums held at once, unless a single set takes more."""

LoadRows = Callable[[str, NDArray[np.int64]], torch.Tensor]
"""From a parameter name and rising row positions to float32 gradients (rows, any shape) on the CPU."""


@dataclass(frozen=True)
class Beginnings:
    """Documents in order, and how many of the first of them to take as a set."""

    rows: NDArray[np.int64]
    """(n,): row positions."""
    sizes: NDArray[np.int64]
    """Rising, each of 1 to n."""

    @classmethod
    def whole(cls, rows: NDArray[np.int64]) -> Beginnings:
        """All of the documents, as one set; no set where there are none."""
        return cls(rows, np.array([len(rows)] if len(rows) else [], dtype=np.int64))


def coherences(
    sets: Sequence[Beginnings], names: Iterable[str], load: LoadRows, norms: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """The coherence of every beginning, in the shape of `sizes`; that of a single document is 0.

    `norms` (N,) are the norms of the whole raw gradients.

    Raises `ValueError` when a set holds a document whose gradient is zero: it has no direction.
    """
    nothing = np.zeros(0, dtype=np.int64)
    rows = np.concatenate([*(item.rows[: item.sizes.max(initial=0)] for item in sets), nothing])
    if not norms[rows].all():
        raise ValueError("a document with a zero gradient has no cosine")
    needed = np.unique(rows)
    # Cut at its sizes, a set is a run of segments, and a beginning is the running sum of their sums.
    lengths = np.concatenate([*(np.diff(item.sizes, prepend=0) for item in sets), nothing])
    bounds = torch.from_numpy(np.concatenate([[0], lengths.cumsum()]))
    places, weights = (
        torch.from_numpy(np.searchsorted(needed, rows)),
        torch.from_numpy(1 / norms[rows]).float(),
    )
    squares = np.zeros(len(lengths))
    for name in names:
        gradients = load(name, needed).flatten(1)
        for runs in _together([len(item.sizes) for item in sets], BLOCK_BYTES // (4 * gradients.shape[1])):
            first, last = runs[0].start, runs[-1].stop
            own = slice(int(bounds[first]), int(bounds[last]))
            sums = embedding_bag(
                places[own],
                gradients,
                bounds[first:last] - bounds[first],
                mode="sum",
                per_sample_weights=weights[own],
            )
            for run in runs:
                if run.stop - run.start > 1:
                    beginnings = sums[run.start - first : run.stop - first]
                    beginnings.copy_(beginnings.cumsum(0))
            squares[first:last] += sums.square().sum(1, dtype=torch.float64).numpy()
    cuts = np.cumsum([len(item.sizes) for item in sets])[:-1]
    return [
        _mean_cosine(found, item.sizes) for found, item in zip(np.split(squares, cuts), sets, strict=True)
    ]


def random_orders(
    candidates: NDArray[np.int64], length: int, seed: int, count: int = RANDOM_SETS
) -> list[NDArray[np.int64]]:
    """`count` seeded draws, in order and without replacement, of `length` candidates or all where fewer."""
    generator = np.random.default_rng(seed)
    size = min(length, len(candidates))
    return [generator.choice(candidates, size=size, replace=False) for _ in range(count)]


def _together(counts: Sequence[int], most: int) -> Iterator[list[slice]]:
    """The sets' runs of segments, neighbours together while they are `most` at most; empty ones left out."""
    runs: list[slice] = []
    start = 0
    for stop in np.cumsum(counts, dtype=np.int64).tolist():
        if runs and stop - runs[0].start > most:
            yield runs
            runs = []
        if stop > start:
            runs.append(slice(start, stop))
        start = stop
    if runs:
        yield runs


def _mean_cosine(squares: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    return (squares - sizes) / np.maximum(sizes * (sizes - 1), 1) * (sizes > 1)
