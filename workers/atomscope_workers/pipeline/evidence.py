"""How far to trust an atom or a behaviour: its p-value, tightness, prominence, stability over seeds.

An atom's documents were chosen for being alike, so chance must be given the same choice: the whole fit is
repeated on surrogates, documents that vary as strongly in every direction but fall into no groups
(`rotation`), and a p-value says how often an atom of a surrogate parts its documents as clearly
(`separation`). Beyond the clearest surrogate the tail is taken to fall exponentially.

*Tightness*, the mean pairwise cosine of its documents in the whitened space, describes. *Prominence* tells
how far they stand out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, zip_longest

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from atomscope_workers.pipeline.separation import FLAT

TAIL = 0.2
"""Share of the null's largest values from which its tail is drawn out."""
TAIL_LEAST = 20
"""Least number of those values: from fewer the slope of the tail could not be told."""
LEAST = 1e-9
"""The tail is drawn out no further than this: no null is known so far out."""
DISCOVERY_RATE = 0.05
"""False-discovery rate at which atoms and behaviours count as significant."""
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


def enough_of_each(known: NDArray[np.bool_], sets: Sequence[NDArray[np.int64]], share: float) -> list[int]:
    """Positions beside the `known` (N,) with which at least `share` of each set is known, few of them.

    The next is always what the most sets want that still lack some, of equal ones the first to come in any of
    them. The fewest of all could be found only by trying every choice.
    """
    in_order = dict.fromkeys(chain.from_iterable(zip_longest(*(places.tolist() for places in sets))))
    unknown = [place for place in in_order if place is not None and not known[place]]
    columns = {place: column for column, place in enumerate(unknown)}
    lacking = np.array([math.ceil(share * len(places)) - known[places].sum() for places in sets], np.int64)
    wants = np.zeros((len(sets), len(unknown)), dtype=np.bool_)
    for row in np.flatnonzero(lacking > 0).tolist():
        wants[row, [columns[place] for place in sets[row].tolist() if not known[place]]] = True
    wanted = wants.sum(0)
    found: list[int] = []
    while wanted.any():
        column = int(wanted.argmax())
        found.append(unknown[column])
        own = np.flatnonzero(wants[:, column])
        lacking[own] -= 1
        wants[:, column], wanted[column] = False, 0
        for row in own[lacking[own] == 0].tolist():
            wanted -= wants[row]
            wants[row] = False
    return found


def tightness(pulled: NDArray[np.float64], table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean pairwise cosine (K,) of the documents of every column, each pair weighted by both strengths.

    `table` (N, K) holds strengths, those below zero counting as none, and `pulled` (N, K) what `pulls` makes
    of them: sums over the other documents of strength times cosine. A column of fewer than two documents has
    0.
    """
    weights = table.clip(min=0)
    pairs = np.square(weights.sum(0)) - np.square(weights).sum(0)
    several = (weights > 0).sum(0) > 1
    return np.divide((weights * pulled).sum(0), pairs, out=np.zeros(weights.shape[1]), where=several)


def prominence(pulled: NDArray[np.float64], table: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far the pull of each column (K,) on its documents lies above that on all, in standard deviations.

    `pulled` and `table` are those of `tightness`; a document counts by its strength. A column of n equal
    documents among N has at most sqrt(N / n - 1), where its pull parts them from the others altogether. One
    that pulls all alike has 0.
    """
    weights = table.clip(min=0)
    own = np.divide(
        (weights * pulled).sum(0), weights.sum(0), out=np.zeros(weights.shape[1]), where=weights.any(0)
    )
    if not len(pulled):
        return own
    spread = pulled.std(0)
    varied = weights.any(0) & (spread > FLAT * np.abs(pulled).max(0))
    return np.divide(own - pulled.mean(0), spread, out=np.zeros_like(own), where=varied)


def p_values(observed: NDArray[np.float64], null: NDArray[np.float64]) -> list[float | None]:
    """Chance of a surrogate's value as large; None where the null is too small."""
    count = len(null)
    if count < FEWEST_NULL:
        return [None] * len(observed)
    values = np.sort(null)
    start = count - max(TAIL_LEAST, int(np.ceil(count * TAIL)))
    threshold, slope = float(values[start]), float((values[start:] - values[start]).mean())
    found: list[float | None] = []
    for value in observed.tolist():
        above = count - int(np.searchsorted(values, value, side="left"))
        p = (1 + above) / (1 + count)
        if above == 0 and slope > 0:
            p = min(p, (count - start) / count * float(np.exp(-(value - threshold) / slope)))
            p = max(p, LEAST)
        found.append(float(p))
    return found


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
