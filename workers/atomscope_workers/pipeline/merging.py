"""Which atoms belong together: average linkage on the cosine of the mean documents they stand for.

Each atom stands for the mean of the documents that use it, weighted by their codes, in the whitened space.
Two atoms whose means are alike pull the same documents, or documents that are alike, the same way. The same
tree merges the pieces of an over-complete fit into atoms, and atoms into behaviours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from atomscope_workers.pipeline.fit import Fit
from atomscope_workers.pipeline.span import Span


@dataclass(frozen=True)
class Grouping:
    """The atoms' tree and its cut."""

    groups: tuple[NDArray[np.int64], ...]
    """Positions of the atoms of each group, rising; groups by falling total code."""
    tree: NDArray[np.float64]
    """scipy's linkage matrix (K - 1, 4) over the atoms given; distances are 1 - cosine."""
    cosines: NDArray[np.float64]
    """(K, K): of the atoms' mean documents."""


def mean_document_cosines(span: Span, codes: torch.Tensor) -> NDArray[np.float64]:
    """Cosines (K, K) of the atoms' mean documents, from codes (N, K)."""
    means = span.combine(codes.T.contiguous())
    inner = span.inner(means, means).double()
    norms = inner.diagonal().clamp_min(1e-30).sqrt()
    return (inner / torch.outer(norms, norms)).clamp(-1, 1).cpu().numpy()


def group_atoms(
    cosines: NDArray[np.float64], totals: NDArray[np.float64], *, cut: float, most: int
) -> Grouping:
    """Join atoms (K) whose means have a cosine of at least `cut` on average, and on until `most` are left.

    `totals` (K,) are the atoms' summed codes, by which the groups are ordered. A `cut` above 1 joins none.
    """
    count = len(cosines)
    if count < 2:
        groups = (np.arange(count, dtype=np.int64),) if count else ()
        return Grouping(groups, np.zeros((0, 4)), cosines)
    distances = np.clip(1 - (cosines + cosines.T) / 2, 0, 2)
    np.fill_diagonal(distances, 0)
    tree: NDArray[np.float64] = linkage(squareform(distances, checks=False), method="average")
    found = fcluster(tree, t=1 - cut, criterion="distance")
    if found.max() > most:
        found = fcluster(tree, t=most, criterion="maxclust")
    groups = [np.flatnonzero(found == number).astype(np.int64) for number in np.unique(found)]
    groups.sort(key=lambda members: (-float(totals[members].sum()), int(members[0])))
    return Grouping(tuple(groups), tree, cosines)


def merge_pieces(span: Span, fitted: Fit, n_atoms: int) -> Fit:
    """Merge the atoms of a fit with codes of no sign but plus until at most `n_atoms` are left.

    A merged atom is the sum of its pieces, each weighted by its total code, scaled to unit norm; a document's
    code on it is the sum of its codes on the pieces.
    """
    if len(fitted.atoms) <= n_atoms:
        return fitted
    totals = fitted.codes.double().sum(0).cpu().numpy()
    grouping = group_atoms(mean_document_cosines(span, fitted.codes), totals, cut=2.0, most=n_atoms)
    gathers = torch.zeros(len(grouping.groups), len(fitted.atoms), dtype=fitted.codes.dtype)
    for row, members in enumerate(grouping.groups):
        gathers[row, torch.from_numpy(members)] = 1.0
    gathers = gathers.to(fitted.codes.device)
    weighted = gathers * torch.from_numpy(totals).to(gathers).clamp_min(1e-12)
    atoms = weighted.to(fitted.atoms.dtype) @ fitted.atoms
    norms = span.inner(atoms, atoms).diagonal().clamp_min(1e-24).sqrt()
    return replace(fitted, atoms=atoms / norms[:, None], codes=fitted.codes @ gathers.T)
