"""The directions along which many documents vary most, and the documents' exact coordinates along them.

A randomised singular value decomposition (Halko, Martinsson and Tropp 2011, algorithm 4.4) of the unit
whitened gradients Z (N, d), of which no more is asked than products with Z Z^T. A sketch of Z, whose inner
products are off by one over the root of its columns, serves to begin with; a product with Z Z^T itself then
takes the place of what the sketch has added at random, and a second one gives the coordinates, which are
exact: what a document has outside of the directions is all that is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from atomscope_workers.pipeline.curvature import ModuleCurvature
from atomscope_workers.pipeline.gram import LoadShard, blocks
from atomscope_workers.pipeline.seeds import seeded
from atomscope_workers.pipeline.span import above_rounding
from atomscope_workers.pipeline.vectors import weighted_sums

_ROUNDS = 6
"""Power iterations over a sketch, which take little beside a product with the documents themselves."""


def sketched_directions(rows: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Document weights (R, N) float32 of directions along which sketched unit rows (N, columns) vary most.

    R is `count`, or as many as there are rows or columns. The weights are orthonormal.
    """
    documents, columns = rows.shape
    drawn = torch.randn(columns, min(count, documents, columns), generator=seeded(seed, "directions"))
    found = rows @ drawn.to(rows.device)
    for _ in range(_ROUNDS):
        found = rows @ (rows.T @ _orthonormal(found))
    return _orthonormal(found).T.contiguous()


def sharpened_directions(products: torch.Tensor) -> torch.Tensor:
    """Document weights (R, N) float32 of directions, from the products (N, R) of documents with earlier ones.

    With weights W of the earlier ones the products are Z Z^T W^T: they are themselves the weights that one
    power iteration more would give.
    """
    return _orthonormal(products).T.contiguous()


def module_products(
    weights: torch.Tensor, module: ModuleCurvature, load: LoadShard, sizes: Sequence[int]
) -> torch.Tensor:
    """One module's part (N, R) float32 of the products of whitened gradients with weighted sums of them.

    `weights` (R, N) float32 are those of raw gradients. Whitening is linear and symmetric, so it is the R
    sums of raw gradients that are whitened, twice, and no document is.
    """
    summed = weighted_sums(weights, load, sizes, [module.name])[module.name]
    probes = torch.zeros_like(summed)
    for block in blocks([module], len(summed)):
        probes += block.unwhiten(block.whiten(summed), -0.5)
    flat = probes.flatten(1).T
    return torch.cat([load(shard, module.name).flatten(1) @ flat for shard in range(len(sizes))])


def coordinates(weights: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
    """Coordinates (N, R) float32 along orthonormal directions that span those of document weights (R, N).

    `products` (N, R) are those of the unit documents with these. Directions that are rounding are left out.
    """
    if not len(weights):
        return products
    inner = (weights @ products).double()
    values, vectors = above_rounding((inner + inner.T) / 2)
    return products @ (vectors * values.rsqrt()).float()


def cosine_error(cosines: torch.Tensor, gram: torch.Tensor) -> float:
    """Root mean square error of cosines (n, n) of different documents, against inner products (n, n)."""
    off = ~torch.eye(len(gram), dtype=torch.bool)
    scale = gram.double().diagonal().clamp_min(1e-30).rsqrt()
    exact = gram.double() * scale[:, None] * scale
    return float((cosines.double() - exact)[off].square().mean().sqrt()) if len(gram) > 1 else 0.0


def _orthonormal(columns: torch.Tensor) -> torch.Tensor:
    basis: torch.Tensor = torch.linalg.qr(columns)[0]
    return basis
