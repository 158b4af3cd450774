"""Curvature of every module: Kronecker eigenbases, lambda, and the components that are kept.

A module's gradient G (d_out, d_in) is rotated into R = Q_S^T G Q_A, where Q_A and Q_S are the eigenvectors of
its Kronecker factors. Lambda says how much energy each of the d_out x d_in coordinates holds:

- `ekfac` and `ekfac-full`: measured, the mean over documents of R squared. Damped by a share of the module's
  mean lambda. `ekfac-full` cuts nothing: it keeps no list of components.
- `kfac`: the product of the factors' eigenvalues, as in the paper, whose absolute eps of 1e-6 it keeps. It is
  inert in some modules and dominant in others; that is why `ekfac` is the default.

Eigenvectors are computed in float64 and kept in float32; lambda is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from atomscope.types.spec import Preconditioner
from atomscope_workers.pipeline.factors import FactorSums
from atomscope_workers.pipeline.two_sided import two_sided

KFAC_EPS = 1e-6
"""Added to products of Kronecker eigenvalues, as the paper does."""


@dataclass(frozen=True)
class Eigenbasis:
    """Eigenvectors of one Kronecker factor of size n, by falling eigenvalue."""

    values: torch.Tensor
    """float64 (n,), never negative."""
    vectors: torch.Tensor
    """float32 (n, n): one eigenvector a column."""


@dataclass(frozen=True)
class Rotation:
    """The eigenbases of one module."""

    name: str
    group: str
    """Its input group: modules of one group share `inputs`."""
    inputs: Eigenbasis
    """Q_A."""
    outputs: Eigenbasis
    """Q_S."""

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.outputs.values.numel(), self.inputs.values.numel()

    def rotate(self, gradients: torch.Tensor) -> torch.Tensor:
        """Q_S^T G Q_A of float32 gradients (n, d_out, d_in), float32, on the device of the gradients."""
        return two_sided(self.outputs.vectors, gradients, self.inputs.vectors)


@dataclass(frozen=True)
class ModuleCurvature:
    """What one module contributes to the projection."""

    rotation: Rotation
    lambdas: torch.Tensor
    """float64 (d_out, d_in), never negative."""
    damping: float
    """Added to every lambda."""
    chosen: torch.Tensor
    """int64 (k, 2): (row, column) of the kept components, by falling lambda; none without energy."""
    scale: torch.Tensor
    """float64 (k,): sqrt(lambda + damping) of the kept components: whitening divides by it."""

    @property
    def name(self) -> str:
        return self.rotation.name

    @property
    def has_energy(self) -> bool:
        """Whether any document had a gradient here."""
        return float(self.lambdas.sum()) > 0


def eigenbasis(factor: torch.Tensor) -> Eigenbasis:
    """Eigenvectors of a symmetric positive semi-definite float64 matrix (n, n).

    Rounding may leave eigenvalues a little below zero: they are zero. Each vector's largest entry is made
    positive, since its sign is arbitrary. Memory is in C order, as a file gives it back: in another order,
    some CPUs round products otherwise.
    """
    values, vectors = torch.linalg.eigh((factor + factor.T) / 2)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return Eigenbasis(values, (vectors * torch.where(largest < 0, -1.0, 1.0)).float().contiguous())


def rotations(factors: FactorSums) -> tuple[Rotation, ...]:
    """The eigenbases of every module, sorted by name; an input shared by several is decomposed once."""
    inputs = {group: eigenbasis(factors.mean_input(group)) for group in sorted(factors.inputs)}
    return tuple(
        Rotation(
            name, factors.groups[name], inputs[factors.groups[name]], eigenbasis(factors.mean_output(name))
        )
        for name in sorted(factors.groups)
    )


def squared_sum(rotation: Rotation, gradients: torch.Tensor) -> torch.Tensor:
    """Sum over documents of the squared rotated gradients, float64 (d_out, d_in), on their device."""
    return torch.linalg.vector_norm(rotation.rotate(gradients), dim=0, dtype=torch.float64).square_()


def measured_lambda(sums: torch.Tensor, documents: int) -> torch.Tensor:
    """`ekfac` and `ekfac-full`: the mean of R squared, from the sum of `squared_sum` over every shard."""
    return sums / documents


def kronecker_lambda(rotation: Rotation) -> torch.Tensor:
    """`kfac`: products of the factors' eigenvalues, float64 (d_out, d_in)."""
    return torch.outer(rotation.outputs.values, rotation.inputs.values)


def choose_components(
    rotation: Rotation,
    lambdas: torch.Tensor,
    *,
    preconditioner: Preconditioner,
    components: int,
    damping: float,
) -> ModuleCurvature:
    """Keep the `components` coordinates of largest lambda, or all there are; ties go to the first by rows.

    `damping` is relative to the module's mean lambda; `kfac` does not use it. `ekfac-full` chooses none. A
    module whose lambda is zero everywhere keeps nothing: its gradients are zero, and nothing can be divided
    by them.
    """
    lambdas = lambdas.cpu()
    mean = float(lambdas.mean())
    eps = KFAC_EPS if preconditioner == "kfac" else damping * mean
    count = min(components, lambdas.numel()) if mean > 0 and preconditioner != "ekfac-full" else 0
    flat = torch.argsort(lambdas.flatten(), descending=True, stable=True)[:count]
    columns = lambdas.shape[1]
    return ModuleCurvature(
        rotation=rotation,
        lambdas=lambdas,
        damping=eps,
        chosen=torch.stack([flat // columns, flat % columns], dim=1),
        scale=(lambdas.flatten()[flat] + eps).sqrt(),
    )


def silent_modules(curvature: Sequence[ModuleCurvature]) -> list[str]:
    """Names of the modules without energy: their gradient was zero for every document."""
    return [module.name for module in curvature if not module.has_energy]
