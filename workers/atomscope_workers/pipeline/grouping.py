"""Which atoms are one behaviour: a tree over them, and its cut.

An atom stands for the sum of the documents that use it, weighted by their codes, in the whitened space. How
alike two sums are is told by the products of *different* documents alone: a document's product with itself
says nothing of others, and is most of the norm of an atom of few documents, which would be like nothing else.
And they are told twice, of documents as they are and less the mean of all; the lesser cosine counts. In noise
all atoms share that mean and nothing besides; with it gone, a rare atom may resemble what it merely lies by.

Two groups a and b of cosine c lie apart by (1 - c) s^(1/12), s the total code of the lesser over that of an
average atom. The nearest are joined first, their sums added. So a fragment goes to what it is a fragment of
before two behaviours that are hardly alike are made one, and what is rare stays by itself while it is like
nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from atomscope.types.hierarchy import HIGHEST
from atomscope_workers.pipeline.span import Span

EXPONENT = 1 / 12
"""Of the lesser's weight: an atom of a tenth of the average counts as a sixth nearer."""
_LEAST = 0.1
"""Of the products of documents with themselves: the least that those of different ones count as."""
_FURTHEST = HIGHEST - 1e-9
"""Leaves room for heights that are raised."""

Table = NDArray[np.float64]


@dataclass(frozen=True)
class Grouping:
    """The atoms' tree and its cut."""

    groups: tuple[NDArray[np.int64], ...]
    """Positions of the atoms of each group, rising; groups by falling total code."""
    tree: Table
    """As scipy's linkage matrix (K - 1, 4) over the atoms given: two nodes, their height, the atoms below.

    A height is how far apart they lay, at most 2; that of a join no further than the one before it is raised
    by the least bit above that one's, so that every number of groups has its height.
    """
    cut: float
    """Height up to which they were joined."""


@dataclass(frozen=True)
class Products:
    """Inner products (K, K) of the atoms' summed documents."""

    different: Table
    """Over pairs of different documents."""
    same: Table
    """(K,): on the diagonal, over pairs of a document and itself. A group has the sum of its atoms', without
    what a document is to itself across two of them: it only bounds `different` from below."""


def summed_products(span: Span, codes: Table) -> tuple[Products, Products]:
    """Products of the sums of documents as they are, and of documents less the mean of all.

    From codes (N, K), float64, of N unit documents; those below zero count as none.
    """
    weights = torch.from_numpy(codes.clip(min=0)).float().to(span.device)
    doubled = weights.double()
    mean = span.combine(torch.full((1, len(codes)), 1 / max(len(codes), 1), device=span.device))
    on_mean = span.products(mean)[:, 0].double()
    # Documents are of unit norm; less the mean they are of these squared norms.
    left = (1 - 2 * on_mean + span.inner(mean, mean).double()[0, 0]).clamp_min(0)

    def products(combined: torch.Tensor, norms: torch.Tensor) -> Products:
        sums = span.combine(combined.float().T.contiguous())
        same = doubled.T @ (norms[:, None] * doubled)
        found = (span.inner(sums, sums).double() - same).cpu().numpy()
        return Products((found + found.T) / 2, same.diagonal().cpu().numpy())

    # The sum of centred documents is the sum of documents under centred weights.
    return products(doubled, torch.ones_like(left)), products(doubled - doubled.mean(0), left)


def group_atoms(products: Sequence[Products], totals: Table, *, cut: float, most: int) -> Grouping:
    """Join atoms (K) that lie no further apart than `cut`, and on until at most `most` groups are left.

    Of several products the least cosine counts. `totals` (K,) are the atoms' summed codes.
    """
    count = len(totals)
    tree = _tree(products, totals)
    forced = float(tree[count - most - 1, 2]) if count > most else 0.0
    height = max(cut, forced)
    members: dict[int, list[int]] = {node: [node] for node in range(count)}
    for node, (left, right, apart, _) in enumerate(tree.tolist(), start=count):
        if apart > height:
            break
        members[node] = members.pop(int(left)) + members.pop(int(right))
    groups = [np.array(sorted(group), dtype=np.int64) for group in members.values()]
    groups.sort(key=lambda group: (-float(totals[group].sum()), int(group[0])))
    return Grouping(tuple(groups), tree, height)


def _tree(products: Sequence[Products], totals: Table) -> Table:
    """Every join (K - 1, 4), the nearest first."""
    count = len(totals)
    found = np.zeros((max(count - 1, 0), 4))
    if count < 2:
        return found
    joining = _Joining(products, totals)
    highest = -1.0
    for step in range(count - 1):
        left, right, apart = joining.nearest()
        highest = max(float(np.nextafter(highest, np.inf)), apart)
        nodes = sorted((joining.node[left], joining.node[right]))
        joining.join(left, right, count + step)
        found[step] = (*nodes, highest, joining.size[left])
    return found


class _Joining:
    """Groups as they are joined, each in the row of its first atom."""

    def __init__(self, products: Sequence[Products], totals: Table) -> None:
        self._products = [Products(item.different.copy(), item.same.copy()) for item in products]
        mean = float(totals.mean())
        # An atom of no weight at all has no lesser claim to stand alone.
        self._weight = np.where(totals > 0, totals / mean, 1.0) if mean > 0 else np.ones(len(totals))
        self.node = list(range(len(totals)))
        self.size = np.ones(len(totals), dtype=np.int64)
        self._gone = np.zeros(len(totals), dtype=np.bool_)
        self._apart = np.stack([self._from(row) for row in range(len(totals))])
        self._next = self._apart.argmin(1)
        self._least = self._apart.min(1)

    def nearest(self) -> tuple[int, int, float]:
        """The two rows that lie nearest, the lower first, and how far apart."""
        row = int(self._least.argmin())
        other = int(self._next[row])
        return min(row, other), max(row, other), float(self._least[row])

    def join(self, kept: int, gone: int, node: int) -> None:
        """Make one group of two rows."""
        for item in self._products:
            item.different[kept] += item.different[gone]
            item.different[:, kept] += item.different[:, gone]
            item.same[kept] += item.same[gone]
        self._weight[kept] += self._weight[gone]
        self.size[kept] += self.size[gone]
        self.node[kept] = node
        self._gone[gone] = True
        self._apart[gone] = self._apart[:, gone] = np.inf
        row = self._from(kept)
        self._apart[kept] = self._apart[:, kept] = row
        self._least[gone] = np.inf
        stale = np.flatnonzero(np.isin(self._next, (kept, gone)) & ~self._gone)
        stale = np.union1d(stale, [kept])
        self._next[stale], self._least[stale] = self._apart[stale].argmin(1), self._apart[stale].min(1)
        nearer = row < self._least
        self._next[nearer], self._least[nearer] = kept, row[nearer]

    def _from(self, row: int) -> Table:
        """How far every other row lies from one."""
        cosines = np.ones(len(self._weight))
        for item in self._products:
            norms = np.maximum(item.different.diagonal(), _LEAST * item.same).clip(1e-30)
            cosines = np.minimum(cosines, (item.different[row] / np.sqrt(norms * norms[row])).clip(-1, 1))
        lesser = np.minimum(self._weight, self._weight[row])
        apart: Table = ((1 - cosines) * lesser**EXPONENT).clip(max=_FURTHEST)
        apart[self._gone] = np.inf
        apart[row] = np.inf
        return apart
