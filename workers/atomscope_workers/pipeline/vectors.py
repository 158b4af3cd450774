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

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from atomscope.types.spec import VectorPower
from atomscope_workers.pipeline.curvature import ModuleCurvature
from atomscope_workers.pipeline.projection import columns

_EXPONENTS: dict[VectorPower, float] = {"+1/2": 0.5, "0": 0.0, "-1/2": -0.5}


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


def vector_norm(row: NDArray[np.floating], curvature: Sequence[ModuleCurvature], power: VectorPower) -> float:
    """Euclidean norm of the vector of a dictionary row; rotations keep it, so none is needed."""
    places = columns(curvature)
    squares = (float(np.square(_weighted(row[places[m.name]], m, power)).sum()) for m in curvature)
    return float(np.sqrt(sum(squares)))


def _weighted(part: NDArray[np.floating], module: ModuleCurvature, power: VectorPower) -> NDArray[np.float64]:
    """Coordinates times (lambda + damping)^p; `scale` is the square root of that sum."""
    scale = module.scale.numpy()
    return part.astype(np.float64) * scale ** (2 * _EXPONENTS[power])
