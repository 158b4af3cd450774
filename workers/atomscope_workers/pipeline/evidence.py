"""How far to trust an atom or a behaviour: tightness with its p-value, stability over seeds, rank.

*Tightness* is the mean pairwise cosine of the first documents in the whitened space. An atom's documents
were chosen for being alike, so chance must be given the same choice: the whole fit is repeated on
surrogates, every whitened coordinate dealt out anew among the documents, and a p-value says how often an
atom of a surrogate is as tight. Beyond the tightest surrogate the tail is taken to fall exponentially,
which is slower than it does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from atomscope.types.atoms import Evidence
from atomscope_workers.pipeline.span import Span

TAIL = 0.2
"""Share of the null's largest values from which its tail is drawn out."""
TAIL_LEAST = 20
"""Least number of those values: from fewer the slope of the tail could not be told."""
LEAST = 1e-9
"""The tail is drawn out no further than this: no null is known so far out."""
FEWEST_NULL = 20
"""Null values below which there is no p-value: too few to say anything."""


def first_documents(codes: NDArray[np.float64], most: int) -> list[NDArray[np.int64]]:
    """Positions of the positive documents of every column of codes (N, K), the `most` strongest first."""
    found: list[NDArray[np.int64]] = []
    for column in codes.T:
        active = np.flatnonzero(column > 0)
        order = np.argsort(-column[active], kind="stable")[:most]
        found.append(active[order].astype(np.int64))
    return found


def tightness(span: Span, members: NDArray[np.int64]) -> float:
    """Mean pairwise cosine of some documents in the span; 0 for fewer than two."""
    count = len(members)
    if count < 2:
        return 0.0
    cosines = span.cosines(torch.from_numpy(members)).double()
    return float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))


def p_values(
    observed: Sequence[float], sizes: Sequence[int], null: Sequence[float], null_sizes: Sequence[int]
) -> list[float | None]:
    """Chance of a surrogate's value as large, given how many documents it is a mean over.

    A null value over n documents is compared with observed ones over as many: means over fewer documents
    scatter more, so each is scaled by sqrt(n (n - 1)) about the null's median. None where the null is too
    small.
    """
    keep = [item for item, size in enumerate(null_sizes) if size >= 2]
    if len(keep) < FEWEST_NULL:
        return [None] * len(observed)
    values = np.array([null[item] for item in keep])
    centre = float(np.median(values))
    scaled = np.sort((values - centre) * _weight([null_sizes[item] for item in keep]))
    count = len(scaled)
    start = count - max(TAIL_LEAST, int(np.ceil(count * TAIL)))
    threshold, slope = float(scaled[start]), float((scaled[start:] - scaled[start]).mean())
    found: list[float | None] = []
    for value in (np.asarray(observed) - centre) * _weight(sizes):
        above = count - int(np.searchsorted(scaled, value, side="left"))
        p = (1 + above) / (1 + count)
        if above == 0 and slope > 0:
            p = min(p, (count - start) / count * float(np.exp(-(value - threshold) / slope)))
            p = max(p, LEAST)
        found.append(float(p))
    return found


def _weight(sizes: Sequence[int]) -> NDArray[np.float64]:
    n = np.maximum(np.asarray(sizes, dtype=np.float64), 2)
    return np.sqrt(n * (n - 1))


def benjamini_hochberg(p: Sequence[float | None]) -> list[float | None]:
    """False-discovery rates at which each would just pass (q-values); None stays None."""
    known = [item for item, value in enumerate(p) if value is not None]
    values = np.array([p[item] for item in known], dtype=np.float64)
    order = np.argsort(values, kind="stable")
    ranked = values[order] * len(values) / np.arange(1, len(values) + 1)
    adjusted = np.minimum.accumulate(ranked[::-1])[::-1].clip(max=1.0)
    found: list[float | None] = [None] * len(p)
    for place, item in zip(order, adjusted, strict=True):
        found[known[int(place)]] = float(item)
    return found


def stability(matches: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Mean, over other fits, of the cosine with the partner in that fit; each partner serves one.

    `matches` holds, for every other fit, the cosines (K, L) of this fit's atoms or behaviours with that
    one's. One without a partner counts 0. With no other fit the result is NaN.
    """
    if not matches:
        raise ValueError("there is no other fit to compare with")
    found = np.zeros((len(matches), len(matches[0])))
    for item, cosines in enumerate(matches):
        rows, columns = linear_sum_assignment(-cosines)
        found[item, rows] = cosines[rows, columns]
    return found.mean(0).clip(min=0)


def column_cosines(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines (K, L) of the columns of two tables (N, K) and (N, L) without negatives; 0 of an empty one."""
    scale = np.outer(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=0))
    return np.divide(left.T @ right, scale, out=np.zeros_like(scale), where=scale > 0)


def score(evidence: Evidence) -> float:
    """What atoms and behaviours are ranked by: tightness above the null's median, times stability.

    Each part counts only where it was measured.
    """
    above = (evidence.tightness or 0.0) - (evidence.null_tightness or 0.0)
    return max(0.0, above) * (evidence.stability if evidence.stability is not None else 1.0)
