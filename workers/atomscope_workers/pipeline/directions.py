"""The directions along which many documents vary most, and the documents' exact coordinates along them.

A randomised singular value decomposition (Halko, Martinsson and Tropp 2011, algorithm 4.4) of the unit
whitened gradients Z (N, d), of which no more is asked than products with Z Z^T. A sketch of Z, whose inner
products are off by one over the root of its columns, serves to begin with; a product with Z Z^T itself then
takes the place of what the sketch has added at random, and a second one gives the coordinates, which are
exact: what a document has outside of the directions is all that is lost.
"""

from __future__ import annotations

import torch

from atomscope_workers.pipeline.curvature import ModuleCurvature
from atomscope_workers.pipeline.gram import blocks
from atomscope_workers.pipeline.seeds import seeded
from atomscope_workers.pipeline.span import above_rounding

_ROUNDS = 6
"""Power iterations over a sketch, which take little beside a product with the documents themselves."""
SKETCH_PRODUCTS = 1 + 2 * _ROUNDS
"""Products with the sketch that these are."""


def sketched_directions(rows: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Document weights (N, R) float32 of directions along which sketched unit rows (N, columns) vary most.

    R is `count`, or as many as there are rows or columns. The weights are orthonormal.
    """
    documents, columns = rows.shape
    drawn = torch.randn(columns, min(count, documents, columns), generator=seeded(seed, "directions"))
    found = rows @ drawn.to(rows.device)
    for _ in range(_ROUNDS):
        found = rows @ (rows.T @ _orthonormal(found))
    return _orthonormal(found)


def sharpened_directions(products: torch.Tensor) -> torch.Tensor:
    """Document weights (N, R) float32 of directions, from the products (N, R) of documents with earlier ones.

    With weights W of the earlier ones the products are Z Z^T W: they are themselves the weights that one
    power iteration more would give.
    """
    return _orthonormal(products)


def probes(module: ModuleCurvature, summed: torch.Tensor) -> torch.Tensor:
    """What raw gradients of one module are multiplied by, float32 (R, d_out, d_in), given sums of them.

    A raw gradient times a probe is the whitened gradient times the whitened sum: whitening is linear, so it
    is the R sums that are whitened, twice, and no document is.
    """
    found = torch.zeros_like(summed)
    for block in blocks([module], len(summed)) if len(summed) else ():
        found += block.unwhiten(block.whiten(summed), -0.5)
    return found


def coordinates(weights: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
    """Coordinates (N, R) float32 along orthonormal directions that span those of document weights (N, R).

    `products` (N, R) are those of the unit documents with these. Directions that are rounding are left out.
    """
    if not len(weights):
        return products
    inner = (weights.T @ products).double()
    values, vectors = above_rounding((inner + inner.T) / 2)
    return products @ (vectors * values.rsqrt()).float()


def _orthonormal(columns: torch.Tensor) -> torch.Tensor:
    basis: torch.Tensor = torch.linalg.qr(columns)[0]
    return basis
