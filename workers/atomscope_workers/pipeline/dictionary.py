"""Sparse dictionary of the whitened documents (eq. 2), by either solver: its size, its fit, its signs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from atomscope.types.spec import AuditConfig
from atomscope_workers.pipeline.alternating import learn
from atomscope_workers.pipeline.fit import Fit
from atomscope_workers.pipeline.merging import merge_pieces
from atomscope_workers.pipeline.minibatch import learn_minibatch
from atomscope_workers.pipeline.span import Span

FEWEST, MOST = 8, 500
PER_ROOT = 2.5
PER_PIECE = 6
"""Documents for each piece of an over-complete fit."""
MOST_PIECES = 1000


@dataclass(frozen=True)
class Dictionary:
    """K atoms over N documents, signs resolved."""

    atoms: torch.Tensor
    """(K, width) vectors of the span; a row that nothing uses may be zero."""
    codes: NDArray[np.float64]
    """(N, K)."""
    signs: NDArray[np.int64]
    """(K,): what the solver's atom and codes were multiplied by, +1 or -1."""
    facts: dict[str, Any]
    """How the fit went: `solver`, `alpha`, `objective`, `rounds`, `converged`, `last_fall`, `tolerance`,
    `reseeded`, `pieces`, `codes_per_document`, `solver_warnings`."""


def dictionary_size(n_atoms: int | Literal["auto"], documents: int) -> int:
    """K: as asked, or for `auto` 2.5 times the square root of the documents, from 8 to 500.

    Never more than the documents. The root is the rule of thumb by which clusters and atoms both grow: twice
    the atoms take four times the documents.
    """
    wanted = (
        min(max(math.ceil(PER_ROOT * math.sqrt(documents)), FEWEST), MOST) if n_atoms == "auto" else n_atoms
    )
    return min(wanted, documents)


def piece_count(config: AuditConfig, n_atoms: int, documents: int) -> int:
    """Atoms of the over-complete fit from which K = `n_atoms` are merged; K itself where none are."""
    if config.codes == "signed":
        return n_atoms
    wanted = min(documents // PER_PIECE, MOST_PIECES) if config.pieces == "auto" else config.pieces
    return min(max(wanted, n_atoms), documents)


def fit(span: Span, n_atoms: int, config: AuditConfig, seed: int) -> Fit:
    """Fit K atoms by the solver of `config`. One seed gives one result.

    Non-negative codes are fitted over-complete, and atoms that pull the same documents the same way are then
    merged until K are left: a small dictionary, fitted at once, spends its atoms on what is frequent, and a
    large one splits a behaviour into pieces.

    An `alpha` at which every code is zero gives atoms that no document uses: `codes_per_document` is then 0.
    """
    if config.solver == "sklearn":
        if config.alpha == "auto":
            raise ValueError("the solver `sklearn` needs a number for `alpha`")
        return learn_minibatch(span, n_atoms, alpha=config.alpha, seed=seed)
    found = learn(
        span,
        piece_count(config, n_atoms, span.documents),
        codes=config.codes,
        alpha=None if config.alpha == "auto" else config.alpha,
        codes_per_document=config.codes_per_document,
        seed=seed,
    )
    return merge_pieces(span, found, n_atoms) if config.codes == "nonnegative" else found


def resolve_signs(fitted: Fit, solver: str) -> Dictionary:
    """Turn every atom so that its codes sum to no less than zero."""
    codes = fitted.codes.double().cpu().numpy()
    signs = np.where(codes.sum(0) < 0, -1, 1).astype(np.int64)
    facts: dict[str, Any] = {
        "solver": solver,
        "alpha": fitted.alpha,
        "objective": fitted.objective,
        "rounds": fitted.rounds,
        "converged": fitted.converged,
        "last_fall": fitted.last_fall,
        "tolerance": fitted.tolerance,
        "reseeded": fitted.reseeded,
        "pieces": fitted.pieces,
        "codes_per_document": fitted.codes_per_document,
        "solver_warnings": list(fitted.warnings),
    }
    turned = torch.from_numpy(signs).to(fitted.atoms.device, fitted.atoms.dtype)
    return Dictionary(fitted.atoms * turned[:, None], codes * signs.astype(np.float64), signs, facts)
