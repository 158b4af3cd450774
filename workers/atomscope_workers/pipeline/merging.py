"""The pieces of an over-complete fit, merged into atoms: average linkage on the cosine of mean documents.

A piece stands for the mean of the documents that use it, weighted by their codes, in the whitened space. Two
pieces whose means are alike pull the same documents, or documents that are alike, the same way.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from atomscope_workers.pipeline.fit import Fit
from atomscope_workers.pipeline.span import Span


def mean_document_cosines(span: Span, codes: torch.Tensor) -> NDArray[np.float64]:
    """Cosines (K, K) of the atoms' mean documents, from codes (N, K)."""
    means = span.combine(codes.T.contiguous())
    inner = span.inner(means, means).double()
    norms = inner.diagonal().clamp_min(1e-30).sqrt()
    return (inner / torch.outer(norms, norms)).clamp(-1, 1).cpu().numpy()


def joined(cosines: NDArray[np.float64], most: int) -> list[NDArray[np.int64]]:
    """Positions of the pieces (K) of each of `most` groups, rising; the most alike are joined first."""
    if len(cosines) <= max(most, 1):
        return [np.array([place], dtype=np.int64) for place in range(len(cosines))]
    distances = np.clip(1 - (cosines + cosines.T) / 2, 0, 2)
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), method="average")
    found = fcluster(tree, t=most, criterion="maxclust")
    return [np.flatnonzero(found == number).astype(np.int64) for number in np.unique(found)]


def merge_pieces(span: Span, fitted: Fit, n_atoms: int) -> Fit:
    """Merge the atoms of a fit with codes of no sign but plus until at most `n_atoms` are left.

    A merged atom is the sum of its pieces, each weighted by its total code, scaled to unit norm; a document's
    code on it is the sum of its codes on the pieces.
    """
    if len(fitted.atoms) <= n_atoms:
        return fitted
    totals = fitted.codes.double().sum(0).cpu().numpy()
    groups = joined(mean_document_cosines(span, fitted.codes), n_atoms)
    groups.sort(key=lambda members: (-float(totals[members].sum()), int(members[0])))
    gathers = torch.zeros(len(groups), len(fitted.atoms), dtype=fitted.codes.dtype)
    for row, members in enumerate(groups):
        gathers[row, torch.from_numpy(members)] = 1.0
    gathers = gathers.to(fitted.codes.device)
    weighted = gathers * torch.from_numpy(totals).to(gathers).clamp_min(1e-12)
    atoms = weighted.to(fitted.atoms.dtype) @ fitted.atoms
    norms = span.inner(atoms, atoms).diagonal().clamp_min(1e-24).sqrt()
    return replace(fitted, atoms=atoms / norms[:, None], codes=fitted.codes @ gathers.T)
