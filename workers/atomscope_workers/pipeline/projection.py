"""The whitened matrix: one row a document, one column a kept component.

A whitened coordinate is z = r / sqrt(lambda + damping), r a coordinate of the rotated gradient. Columns
follow the modules in the order of their names, and within a module its components by falling lambda.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from atomscope_workers.pipeline.curvature import ModuleCurvature


@dataclass(frozen=True)
class ProjectedRows:
    """Whitened coordinates of n documents."""

    rows: NDArray[np.float32]
    """(n, k_total): the kept components."""
    energy_kept: NDArray[np.float64]
    """(n,): squared norm of the row."""
    energy_total: NDArray[np.float64]
    """(n,): squared norm over every component of every module, kept or not."""


def columns(curvature: Sequence[ModuleCurvature]) -> dict[str, slice]:
    """Module name -> its columns of the whitened matrix."""
    places: dict[str, slice] = {}
    start = 0
    for module in curvature:
        stop = start + len(module.chosen)
        places[module.name] = slice(start, stop)
        start = stop
    return places


def project(
    gradients: Callable[[str], torch.Tensor], curvature: Sequence[ModuleCurvature], documents: int
) -> ProjectedRows:
    """Rotate, choose and whiten the gradients of one shard.

    `gradients(name)` gives the float32 gradients (documents, d_out, d_in) of a module on the device that is
    to do the work. The whole rotated gradient is formed, one module at a time: the total energy needs it.
    """
    places = columns(curvature)
    width = max((place.stop for place in places.values()), default=0)
    rows = np.zeros((documents, width), dtype=np.float32)
    total = np.zeros(documents, dtype=np.float64)
    for module in curvature:
        if not len(module.chosen):
            continue
        rotated = module.rotation.rotate(gradients(module.name))
        weights = (module.lambdas + module.damping).reciprocal().to(rotated.device)
        total += (rotated.double().square_() * weights).sum((1, 2)).cpu().numpy()
        chosen = module.chosen.to(rotated.device)
        kept = rotated[:, chosen[:, 0], chosen[:, 1]].double() / module.scale.to(rotated.device)
        rows[:, places[module.name]] = kept.float().cpu().numpy()
    return ProjectedRows(rows, np.square(rows, dtype=np.float64).sum(1), total)
