"""Documents made for the learners: clusters, noise, and the curvature of random gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from atomscope_workers.pipeline.curvature import ModuleCurvature, choose_components, rotations
from atomscope_workers.pipeline.factors import FactorSums

SHAPES = {"a.lora_A.weight": (3, 20), "a.lora_B.weight": (12, 3)}


def clustered(clusters: Sequence[int], width: int = 200, noise: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Rows (N, width) about one random direction a cluster; the noise has `noise` times its length."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(clusters) + 1, width, generator=generator)
    return centres[list(clusters)] + noise * torch.randn(len(clusters), width, generator=generator)


def noise_rows(documents: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(documents, width, generator=torch.Generator().manual_seed(seed))


def gradients(documents: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random gradients (N, d_out, d_in) of `SHAPES` that share a mean and differ in scale."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    for name, shape in SHAPES.items():
        scale = torch.rand(*shape, generator=generator) + 0.1
        found[name] = (torch.randn(documents, *shape, generator=generator) + 0.2) * scale
    return found


def curvature_of(found: dict[str, torch.Tensor]) -> tuple[ModuleCurvature, ...]:
    """Measured curvature of `ekfac-full` in random bases."""
    generator = torch.Generator().manual_seed(1)
    factors = FactorSums(groups={name: name for name in found})
    for name, value in found.items():
        factors.add_input(name, torch.randn(50, value.shape[2], generator=generator))
        factors.add_output(name, torch.randn(50, value.shape[1], generator=generator), 50)
    return tuple(
        choose_components(
            rotation,
            rotation.rotate(found[rotation.name]).double().square().mean(0),
            preconditioner="ekfac-full",
            components=1,
            damping=0.01,
        )
        for rotation in rotations(factors)
    )


def whitened(found: dict[str, torch.Tensor], curvature: Sequence[ModuleCurvature]) -> torch.Tensor:
    """Every whitened coordinate of every document (N, d), float64, module by module."""
    parts: list[torch.Tensor] = []
    for module in curvature:
        q_s, q_a = module.rotation.outputs.vectors.double(), module.rotation.inputs.vectors.double()
        rotated = q_s.T @ found[module.name].double() @ q_a
        parts.append((rotated / (module.lambdas + module.damping).sqrt()).flatten(1))
    return torch.cat(parts, dim=1)


def in_shards(found: dict[str, torch.Tensor], sizes: Sequence[int]) -> Callable[[int, str], torch.Tensor]:
    """A loader of the gradients in shards of `sizes` documents."""
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return lambda shard, name: found[name][starts[shard] : starts[shard + 1]]
