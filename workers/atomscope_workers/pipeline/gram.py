"""Every inner product of the whitened gradients, with no coordinate cut: the N x N Gram matrix.

A whitened gradient has as many coordinates as the adapter has parameters. What the documents have in common
needs only their inner products, which add up over modules and, within one, over coordinates: Z Z^T, with Z
= R / sqrt(lambda + damping) and R the rotated gradients. So the matrix is accumulated block by block, a
block being some columns of the larger side of one module, and no more than a block of coordinates is ever
held.

In the same pass the matrix of *surrogate* documents can be accumulated: every coordinate's values dealt out
anew among the documents, which keeps each coordinate's distribution and leaves nothing that two documents
share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from atomscope_workers.pipeline.curvature import ModuleCurvature
from atomscope_workers.pipeline.seeds import seeded
from atomscope_workers.pipeline.span import deal

BLOCK_BYTES = 256 * 2**20
"""Most bytes of whitened coordinates held at once."""

LEAST_RATIO = 16.0
"""Effective coordinates for each document from which surrogates are drawn from their limit."""

LoadShard = Callable[[int, str], torch.Tensor]
"""From a shard and a parameter name to its float32 gradients (rows, d_out, d_in)."""


@dataclass(frozen=True)
class Block:
    """Some whitened coordinates of one module: the columns `start:stop` of its larger side."""

    module: ModuleCurvature
    start: int
    stop: int

    @property
    def wide(self) -> bool:
        """Whether the larger side is the input's (d_in)."""
        rows, columns = self.module.rotation.shape
        return columns >= rows

    @property
    def part(self) -> tuple[slice, slice]:
        """Its place among the rotated coordinates (d_out, d_in)."""
        cut, whole = slice(self.start, self.stop), slice(None)
        return (whole, cut) if self.wide else (cut, whole)

    def whiten(self, gradients: torch.Tensor) -> torch.Tensor:
        """Whitened coordinates (n, size) of float32 gradients (n, d_out, d_in), on their device."""
        rows, columns = self.part
        device = gradients.device
        q_s = self.module.rotation.outputs.vectors[:, rows].to(device)
        q_a = self.module.rotation.inputs.vectors[:, columns].to(device)
        rotated = (q_s.T @ gradients) @ q_a if self.wide else q_s.T @ (gradients @ q_a)
        return (rotated * self.weights().to(device)).flatten(1)

    def weights(self) -> torch.Tensor:
        """1 / sqrt(lambda + damping) of its coordinates, float32."""
        return (self.module.lambdas[self.part] + self.module.damping).rsqrt().float()

    def unwhiten(self, coordinates: torch.Tensor, exponent: float) -> torch.Tensor:
        """Q_S [z (lambda + damping)^exponent] Q_A^T of coordinates (n, size): (n, d_out, d_in) float32.

        Sums over the blocks of a module give the whole.
        """
        rows, columns = self.part
        device = coordinates.device
        scale = (self.module.lambdas[self.part] + self.module.damping).pow(exponent).float().to(device)
        q_s = self.module.rotation.outputs.vectors[:, rows].to(device)
        q_a = self.module.rotation.inputs.vectors[:, columns].to(device)
        core = coordinates.unflatten(1, tuple(scale.shape)) * scale
        return (q_s @ core) @ q_a.T


def blocks(curvature: Sequence[ModuleCurvature], documents: int, limit: int = BLOCK_BYTES) -> Iterator[Block]:
    """Every coordinate of modules that have energy, in blocks of `limit` bytes at most over N documents."""
    for module in curvature:
        rows, columns = module.rotation.shape
        if not module.has_energy:
            continue
        small, large = min(rows, columns), max(rows, columns)
        step = max(1, min(large, limit // (4 * documents * small)))
        for start in range(0, large, step):
            yield Block(module, start, min(start + step, large))


def whitened_block(block: Block, load: LoadShard, sizes: Sequence[int]) -> torch.Tensor:
    """The block's coordinates of every document, (N, size) float32, from shards of `sizes` rows."""
    parts = [block.whiten(load(shard, block.module.name)) for shard in range(len(sizes))]
    return torch.cat(parts)


@dataclass
class CoordinateMoments:
    """Sums over all coordinates c of what their values' means m_c and variances v_c say of surrogates."""

    mean_squares: float = 0.0
    """Sum of m_c^2."""
    variances: float = 0.0
    """Sum of v_c."""
    squared_variances: float = 0.0
    """Sum of v_c^2."""
    mixed: float = 0.0
    """Sum of m_c^2 v_c."""

    def add(self, whitened: torch.Tensor) -> None:
        """Count the coordinates (N, size) of a block."""
        columns = whitened.double()
        variances, means = torch.var_mean(columns, dim=0, correction=0)
        squares = means.square()
        self.mean_squares += float(squares.sum())
        self.variances += float(variances.sum())
        self.squared_variances += float(variances.square().sum())
        self.mixed += float((squares * variances).sum())

    @property
    def effective_dimension(self) -> float:
        """Coordinates of equal variance that would scatter as much; 0 without any."""
        return self.variances**2 / self.squared_variances if self.squared_variances > 0 else 0.0


def accumulate_gram(
    curvature: Sequence[ModuleCurvature], load: LoadShard, sizes: Sequence[int]
) -> tuple[torch.Tensor, CoordinateMoments]:
    """Z Z^T over every coordinate, float64 (N, N), and the coordinates' moments. Products are float32."""
    gram = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
    moments = CoordinateMoments()
    for block in blocks(curvature, sum(sizes)):
        whitened = whitened_block(block, load, sizes)
        gram = gram.to(whitened.device)
        gram += whitened @ whitened.T
        moments.add(whitened)
    return gram, moments


def surrogate_gram(moments: CoordinateMoments, documents: int, seed: int, purpose: str) -> torch.Tensor:
    """The Gram matrix of documents whose every coordinate was dealt out anew among them, float32 (N, N).

    Each entry is a sum over hundreds of thousands of independent coordinates, so the matrix is drawn from its
    limit: mean and variance are those of the sum, exactly, and the shape is Gaussian. The limit needs many
    more coordinates than documents (`can_draw_surrogates`).
    """
    generator = seeded(seed, purpose)
    noise = torch.randn(documents, documents, generator=generator).triu_(1)
    noise *= moments.squared_variances**0.5
    gram = noise + noise.T
    shared = torch.randn(documents, generator=generator) * moments.mixed**0.5
    gram += moments.mean_squares - moments.variances / max(documents - 1, 1) + shared[:, None] + shared
    gram.diagonal().copy_(moments.mean_squares + moments.variances + 2 * shared)
    return gram


def can_draw_surrogates(moments: CoordinateMoments, documents: int) -> bool:
    """Whether a drawn surrogate is a Gram matrix: its noise must stay well within its diagonal.

    The noise's eigenvalues reach 2 sqrt(N) times its standard deviation, which is the diagonal's share
    1 / sqrt(effective dimension).
    """
    return moments.effective_dimension >= LEAST_RATIO * documents


def dealt_gram(
    curvature: Sequence[ModuleCurvature], load: LoadShard, sizes: Sequence[int], seed: int, purpose: str
) -> torch.Tensor:
    """The same by dealing every coordinate out for real, one pass over the gradients; float32 (N, N)."""
    gram = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
    for block in blocks(curvature, sum(sizes)):
        whitened = whitened_block(block, load, sizes)
        dealt = deal(whitened, seed, f"{purpose}/{block.module.name}/{block.start}")
        gram = gram.to(dealt.device)
        gram += dealt @ dealt.T
    return gram.float()
