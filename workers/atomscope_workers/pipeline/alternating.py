"""Sparse dictionary learning by full-batch alternating minimisation, in torch, on CPU or CUDA.

min over D and C of 1/2 |x - c D|^2 + alpha |c|_1 (eq. 2), atoms of unit norm, codes of either sign or none
below zero. Codes (`lasso`) are warm-started from those before; atoms by one pass of exact block coordinate
descent (Mairal et al. 2010, algorithm 2); an atom that nobody uses is begun anew at the document that is
explained worst.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from atomscope.types.spec import Codes
from atomscope_workers.pipeline.fit import ACTIVE, Fit
from atomscope_workers.pipeline.lasso import settled_codes, sparse_codes
from atomscope_workers.pipeline.seeds import seeded
from atomscope_workers.pipeline.span import Span

OUTER = 100
"""Most rounds of codes and atoms."""
INNER = 12
"""FISTA steps a round."""
TOLERANCE = 1e-4
"""Relative fall of the objective over a round below which the fit has converged."""
SEEN, TOLERANCE_THEN = 100_000, 5e-4
"""Documents, each counted once a round, after which a greater fall will do: of few documents rounds are
cheap, and it is there that the last of them tell small groups apart."""
LITTLE = 0.1
"""Objective, of 1/2 at first, below which falls are then told of this. What atoms explain all but wholly,
such as short texts by their words, would go on falling by a share of next to nothing."""
TUNED_ROUNDS = 25
"""Rounds in which `alpha` is moved towards the codes a document that are wanted; it is fixed afterwards."""

BLOCK = 32
"""Atoms of one block of the update, which are worked out as sums of its own residuals and atoms. Of twice as
many BLAS would share the small products among threads of its own, beside those that torch has."""
BLOCKS = 8
"""Blocks that are taken from the targets at once: of fewer rows the product has to move more than it adds."""

COPY = 1e-6
"""One minus the squared cosine below which two documents are copies of each other."""


def learn(
    span: Span,
    n_atoms: int,
    *,
    codes: Codes,
    alpha: float | None,
    codes_per_document: float,
    seed: int,
    outer: int = OUTER,
) -> Fit:
    """Fit K atoms to the documents of `span`, or as many as there are documents that are no copies.

    One seed on one kind of device gives one result.

    With `alpha` None the penalty is moved in the first rounds until a document has `codes_per_document` codes
    on average. Raises `ValueError` when K is not between 1 and N.
    """
    n = span.documents
    if not 1 <= n_atoms <= n:
        raise ValueError(f"between 1 and {n} atoms can be fitted to {n} documents, not {n_atoms}")
    atoms = span.combine(_first_atoms(span, n_atoms, seed))
    n_atoms = len(atoms)
    norms = torch.ones(n, dtype=atoms.dtype, device=atoms.device)
    penalty = alpha if alpha is not None else 0.1
    found = torch.zeros(n, n_atoms, dtype=atoms.dtype, device=atoms.device)
    before, rounds, reseeded, converged = float("inf"), 0, 0, False
    fall = float("inf")
    tuned = TUNED_ROUNDS if alpha is None else 0
    products, inner = span.products(atoms).contiguous(), span.inner(atoms, atoms)
    for rounds in range(1, outer + 1):
        found = sparse_codes(products, inner, found, penalty, codes, INNER)
        if rounds <= tuned:
            used = float((found.abs() > ACTIVE).sum()) / n
            penalty *= min(2.0, max(0.5, (max(used, 0.05) / codes_per_document) ** 0.5))
        elif not bool((found.abs() > ACTIVE).any()):
            # Not even a document that is an atom has a code on it: no other atoms would have one.
            converged = True
            break
        gathered = found.T @ found
        atoms, fresh = _update(span, atoms, found, gathered)
        if fresh:
            reseeded += _reseed(span, atoms, found, norms, fresh)
            gathered = found.T @ found
        products, inner = span.products(atoms).contiguous(), span.inner(atoms, atoms)
        value = _objective(norms, products, inner, found, gathered, penalty)
        fall = (before - value) / max(abs(value), 1e-30)
        if rounds > tuned and fall < _tolerance(rounds * n, value) and not fresh:
            converged = True
            break
        before = value
    found = settled_codes(products, inner, found, penalty, codes)
    value = _objective(norms, products, inner, found, found.T @ found, penalty)
    return Fit(
        atoms,
        found,
        penalty,
        value,
        rounds,
        converged,
        reseeded,
        pieces=n_atoms,
        last_fall=fall if math.isfinite(fall) else None,
        tolerance=_tolerance(rounds * n, value),
    )


def _tolerance(seen: int, value: float) -> float:
    """The relative fall to an objective that ends a fit whose rounds have gone over so many documents."""
    if seen < SEEN:
        return TOLERANCE
    return TOLERANCE_THEN * max(1.0, LITTLE / max(abs(value), 1e-30))


def _first_atoms(span: Span, n_atoms: int, seed: int) -> torch.Tensor:
    """Weights (K, N) of K documents, chosen as k-means++ chooses: by how far they are from those before.

    Fewer where no document is left that is not a copy of one chosen.
    """
    generator = seeded(seed, "first atoms")
    weights = torch.zeros(n_atoms, span.documents, device=span.device)
    # Drawn on the CPU, whose generator gives the same on every machine.
    far = torch.ones(span.documents, dtype=torch.float64)
    for item in range(n_atoms):
        if float(far.max()) < COPY:
            return weights[:item]
        chosen = int(torch.multinomial(far, 1, generator=generator))
        weights[item, chosen] = 1.0
        far = torch.minimum(far, (1 - span.row(chosen).double().cpu().square()).clamp_min(0))
    return weights


def _update(
    span: Span, atoms: torch.Tensor, codes: torch.Tensor, gathered: torch.Tensor
) -> tuple[torch.Tensor, list[int]]:
    """One pass of block coordinate descent over the atoms; those that nobody uses are returned by index.

    `gathered` (K, K) are the inner products of the codes.

    Atom after atom, each with those before it as they are by then. Within a block all of them are sums of its
    first residuals and its atoms, so it is these sums' weights that are worked out one after the other.
    """
    targets = span.combine(codes.T.contiguous())
    shared = gathered.double().cpu().numpy()
    floor = 1e-8 * max(float(shared.diagonal().max()), 1e-30)
    unused: list[int] = []
    for first in range(0, len(atoms), BLOCKS * BLOCK):
        several = slice(first, min(first + BLOCKS * BLOCK, len(atoms)))
        residuals = targets[several] - gathered[several] @ atoms
        before = atoms[several].clone()
        for start in range(several.start, several.stop, BLOCK):
            block = slice(start, min(start + BLOCK, several.stop))
            done = slice(first, start)
            moved = atoms[done] - before[: start - first]
            residual = residuals[start - first : block.stop - first] - gathered[block, done] @ moved
            parts = torch.cat([residual, atoms[block]])
            inner = span.inner(parts, parts).double().cpu().numpy()
            weights, left = _descended(inner, shared[block, block], floor)
            atoms[block] = torch.from_numpy(weights).to(atoms) @ parts
            unused.extend(start + place for place in left)
    return atoms, unused


def _descended(
    inner: NDArray[np.float64], shared: NDArray[np.float64], floor: float
) -> tuple[NDArray[np.float64], list[int]]:
    """One pass over the atoms of a block: weights (B, 2 B) of the new ones, and which of them nobody uses.

    `inner` (2 B, 2 B) are the inner products of the residuals and the atoms, of which the weights make sums,
    and `shared` (B, B) those of the codes. An atom is unused whose codes have no more than `floor`.
    """
    count = len(shared)
    residuals, before = np.eye(2 * count)[:count], np.eye(2 * count)[count:]
    weights, unused = before.copy(), list[int]()
    for place in range(count):
        usage = shared[place, place]
        if usage <= floor:
            unused.append(place)
            continue
        own = residuals[place] - shared[place, :place] @ (weights - before)[:place]
        vector = before[place] + own / usage
        norm = math.sqrt(max(0.0, vector @ inner @ vector))
        if norm <= 1e-12:
            unused.append(place)
            continue
        weights[place] = vector / norm
    return weights, unused


def _reseed(
    span: Span, atoms: torch.Tensor, codes: torch.Tensor, norms: torch.Tensor, unused: list[int]
) -> int:
    """Begin unused atoms at the documents explained worst, each at another."""
    products, inner = span.products(atoms), span.inner(atoms, atoms)
    residual = norms - 2 * (codes * products).sum(1) + ((codes @ inner) * codes).sum(1)
    worst = torch.argsort(residual, descending=True, stable=True)[: len(unused)].tolist()
    for item, document in zip(unused, worst, strict=True):
        weights = torch.zeros(1, span.documents, dtype=atoms.dtype, device=atoms.device)
        weights[0, document] = 1.0
        atoms[item] = span.combine(weights)[0]
        codes[:, item] = 0
    return len(unused)


def _objective(
    norms: torch.Tensor,
    products: torch.Tensor,
    inner: torch.Tensor,
    codes: torch.Tensor,
    gathered: torch.Tensor,
    alpha: float,
) -> float:
    """A document's mean: what it leaves unexplained is told by sums, of which `gathered` are the codes'."""
    explained = 2 * (codes * products).sum(dtype=torch.float64) - (gathered * inner).sum(dtype=torch.float64)
    left = norms.sum(dtype=torch.float64) - explained
    return float(0.5 * left + alpha * codes.abs().sum(dtype=torch.float64)) / len(codes)
