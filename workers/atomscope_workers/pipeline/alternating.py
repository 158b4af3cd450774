"""Sparse dictionary learning by full-batch alternating minimisation, in torch, on CPU or CUDA.

min over D and C of 1/2 |x - c D|^2 + alpha |c|_1 (eq. 2), atoms of unit norm, codes of either sign or none
below zero. Codes (`lasso`) are warm-started from those before; atoms by one pass of exact block coordinate
descent (Mairal et al. 2010, algorithm 2); an atom that nobody uses is begun anew at the document that is
explained worst.
"""

from __future__ import annotations

import math

import torch

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
"""Atoms of one block of the update: what the block shares is one matrix product."""

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
        atoms, fresh = _update(span, atoms, found)
        if fresh:
            reseeded += _reseed(span, atoms, found, norms, fresh)
        products, inner = span.products(atoms).contiguous(), span.inner(atoms, atoms)
        value = _objective(norms, products, inner, found, penalty)
        fall = (before - value) / max(abs(value), 1e-30)
        if rounds > tuned and fall < _tolerance(rounds * n, value) and not fresh:
            converged = True
            break
        before = value
    found = settled_codes(products, inner, found, penalty, codes)
    value = _objective(norms, products, inner, found, penalty)
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


def _update(span: Span, atoms: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """One pass of block coordinate descent over the atoms; those that nobody uses are returned by index.

    Atom after atom, each with those before it as they are by then. A block's products with all atoms are
    taken at once, from the atoms as they were before the block; what changed within it is added atom by atom.
    """
    gathered = codes.T @ codes
    targets = span.combine(codes.T.contiguous())
    usage: list[float] = gathered.diagonal().tolist()
    unused: list[int] = []
    floor = 1e-8 * max(*usage, 1e-30)
    for start in range(0, len(usage), BLOCK):
        block = slice(start, min(start + BLOCK, len(usage)))
        residual = targets[block] - gathered[block] @ atoms
        moved = torch.zeros_like(residual)
        for place, item in enumerate(range(block.start, block.stop)):
            if usage[item] <= floor:
                unused.append(item)
                continue
            own = residual[place] - gathered[item, start:item] @ moved[:place]
            vector = atoms[item] + own / usage[item]
            norm = float(span.inner(vector[None], vector[None])) ** 0.5
            if norm <= 1e-12:
                unused.append(item)
                continue
            vector /= norm
            moved[place] = vector - atoms[item]
            atoms[item] = vector
    return atoms, unused


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
    norms: torch.Tensor, products: torch.Tensor, inner: torch.Tensor, codes: torch.Tensor, alpha: float
) -> float:
    fit = norms - 2 * (codes * products).sum(1) + ((codes @ inner) * codes).sum(1)
    return float((0.5 * fit + alpha * codes.abs().sum(1)).double().mean())
