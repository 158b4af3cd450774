"""Steering vectors: atoms taken back from the whitened space to the parameters (eq. 4).

Per module, v = -Q_S D Q_A^T, where D holds the atom's coordinates at the kept components, each times
(lambda + damping)^p, and is zero elsewhere. The power p says what the vector is:

- `+1/2`, the paper's: the raw-gradient direction, an average of the documents' gradients;
- `0`: half-whitened, the default; its norm is the atom's, 1;
- `-1/2`: the Newton direction, inverse curvature times the gradient.

The minus is there because the gradient points uphill on the loss: *adding* v lowers the loss of the documents
with a positive code, so it brings their behaviour out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from atomscope.types.spec import VectorPower
from atomscope_workers.pipeline.curvature import ModuleCurvature
from atomscope_workers.pipeline.gram import LoadShard, blocks
from atomscope_workers.pipeline.projection import columns

_EIGENVALUE_FLOOR = 1e-6
"""Share of the largest eigenvalue below which a direction of a basis is rounding."""

EXPONENTS: dict[VectorPower, float] = {"+1/2": 0.5, "0": 0.0, "-1/2": -0.5}


def steering_vector(
    row: NDArray[np.floating], curvature: Sequence[ModuleCurvature], power: VectorPower
) -> dict[str, NDArray[np.float32]]:
    """The vector of a dictionary row (k_total,): every parameter name -> float32 (d_out, d_in)."""
    places = columns(curvature)
    vector: dict[str, NDArray[np.float32]] = {}
    for module in curvature:
        weights = _weighted(row[places[module.name]], module, power)
        core = torch.zeros(module.rotation.shape, dtype=torch.float64)
        core[module.chosen[:, 0], module.chosen[:, 1]] = torch.from_numpy(weights)
        # Only rows and columns with a kept component are multiplied out.
        rows, cols = (torch.unique(module.chosen[:, side]) for side in (0, 1))
        left = module.rotation.outputs.vectors[:, rows].double()
        right = module.rotation.inputs.vectors[:, cols].double()
        vector[module.name] = -(left @ core[rows][:, cols] @ right.T).float().numpy()
    return vector


def combined(
    weights: torch.Tensor,
    module: ModuleCurvature,
    load: LoadShard,
    sizes: Sequence[int],
    power: VectorPower,
) -> torch.Tensor:
    """One module's part (K, d_out, d_in) float32 of the vectors of atoms that are sums of whitened gradients.

    `weights` (K, N) float32 are those of the documents. Whitening is linear, so it is the K sums of raw
    gradients that are whitened, not the N documents.
    """
    total = torch.zeros(len(weights), *module.rotation.shape)
    if module.has_energy and len(weights):
        summed = weighted_sums(weights, load, sizes, [module.name])[module.name]
        for block in blocks([module], len(weights)):
            total -= block.unwhiten(block.whiten(summed), EXPONENTS[power]).cpu()
    return total


def weighted_sums(
    weights: torch.Tensor, load: LoadShard, sizes: Sequence[int], names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """By parameter, the sums (K, d_out, d_in) of gradients with document weights (K, N) float32."""
    sums: dict[str, torch.Tensor] = {}
    for shard, part in enumerate(weights.split(list(sizes), dim=1)):
        for name in names:
            gradients = load(shard, name)
            summed = (part.to(gradients.device) @ gradients.flatten(1)).unflatten(1, gradients.shape[1:])
            sums[name] = sums[name].add_(summed) if shard else summed
    return sums


def nearest_combinations(inner: torch.Tensor, products: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How unit vectors are best made of the vectors of a basis: weights (K, P), and cosines (K,), float64.

    `inner` (P, P) are the inner products of the basis, `products` (K, P) those of the unit vectors with it.
    The combinations are the projections on its span, of unit norm, but for one whose projection is zero.
    """
    values, vectors = torch.linalg.eigh(inner.double())
    kept = values > _EIGENVALUE_FLOOR * values.max(dim=0).values if len(values) else values > 0
    along = products.double() @ vectors[:, kept] * values[kept].rsqrt()
    cosines = torch.linalg.vector_norm(along, dim=1)
    weights = (along * values[kept].rsqrt()) @ vectors[:, kept].T
    return weights / cosines.clamp_min(1e-30)[:, None], cosines


def vector_norm(vector: Mapping[str, NDArray[np.float32]]) -> float:
    """Euclidean norm of a whole vector."""
    return float(np.sqrt(sum(float(np.square(part, dtype=np.float64).sum()) for part in vector.values())))


def _weighted(part: NDArray[np.floating], module: ModuleCurvature, power: VectorPower) -> NDArray[np.float64]:
    """Coordinates times (lambda + damping)^p; `scale` is the square root of that sum."""
    scale = module.scale.numpy()
    return part.astype(np.float64) * scale ** (2 * EXPONENTS[power])
