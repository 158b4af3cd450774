"""Every inner product of the whitened gradients, with no coordinate cut: the N x N Gram matrix.

A whitened gradient has as many coordinates as the adapter has parameters. What the documents have in common
needs only their inner products, which add up over modules and, within one, over coordinates: Z Z^T, with Z
= R / sqrt(lambda + damping) and R the rotated gradients. So the matrix is accumulated block by block, a
block being some columns of the larger side of one module, and no more than a block of coordinates is ever
held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from atomscope_workers.pipeline.curvature import ModuleCurvature
from atomscope_workers.pipeline.two_sided import two_sided

BLOCK_BYTES = 256 * 2**20
"""Most bytes of whitened coordinates held at once."""

TILE = 512
"""Documents whose inner products with all before them are taken at once."""

LoadShard = Callable[[int, str], torch.Tensor]
"""From a shard and a parameter name to its float32 gradients (rows, d_out, d_in)."""


@dataclass(frozen=True)
class Block:
    """Some whitened coordinates of one module: the columns `start:stop` of its larger side."""

    module: ModuleCurvature
    start: int
    stop: int

    @property
    def part(self) -> tuple[slice, slice]:
        """Its place among the rotated coordinates (d_out, d_in)."""
        rows, columns = self.module.rotation.shape
        cut, whole = slice(self.start, self.stop), slice(None)
        return (whole, cut) if columns >= rows else (cut, whole)

    def whiten(self, gradients: torch.Tensor) -> torch.Tensor:
        """Whitened coordinates (n, size) of float32 gradients (n, d_out, d_in), on their device."""
        rows, columns = self.part
        rotation = self.module.rotation
        rotated = two_sided(rotation.outputs.vectors[:, rows], gradients, rotation.inputs.vectors[:, columns])
        return (rotated * self.weights().to(gradients.device)).flatten(1)

    def weights(self) -> torch.Tensor:
        """1 / sqrt(lambda + damping) of its coordinates, float32."""
        return (self.module.lambdas[self.part] + self.module.damping).rsqrt().float()

    def unwhiten(self, coordinates: torch.Tensor, exponent: float) -> torch.Tensor:
        """Q_S [z (lambda + damping)^exponent] Q_A^T of coordinates (n, size): (n, d_out, d_in) float32.

        Sums over the blocks of a module give the whole.
        """
        rows, columns = self.part
        rotation = self.module.rotation
        scale = (self.module.lambdas[self.part] + self.module.damping).pow(exponent).float()
        core = coordinates.unflatten(1, tuple(scale.shape)) * scale.to(coordinates.device)
        return two_sided(rotation.outputs.vectors[:, rows].T, core, rotation.inputs.vectors[:, columns].T)


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


def accumulate_gram(
    curvature: Sequence[ModuleCurvature], load: LoadShard, sizes: Sequence[int]
) -> torch.Tensor:
    """Z Z^T over every coordinate, float64 (N, N). Products are float32."""
    count = sum(sizes)
    gram = torch.zeros(count, count, dtype=torch.float64)
    # The matrix is symmetric: what lies above the tiles of the diagonal is not multiplied out.
    tiles = [slice(start, min(start + TILE, count)) for start in range(0, count, TILE)]
    for block in blocks(curvature, count):
        whitened = whitened_block(block, load, sizes)
        gram = gram.to(whitened.device)
        for tile in tiles:
            gram[tile, : tile.stop] += whitened[tile] @ whitened[: tile.stop].T
    for tile in tiles:
        gram[: tile.start, tile] = gram[tile, : tile.start].T
    return gram


def cosine_error(cosines: torch.Tensor, gram: torch.Tensor) -> float:
    """Root mean square error of cosines (n, n) of different documents, against inner products (n, n)."""
    off = ~torch.eye(len(gram), dtype=torch.bool)
    scale = gram.double().diagonal().clamp_min(1e-30).rsqrt()
    exact = gram.double() * scale[:, None] * scale
    return float((cosines.double() - exact)[off].square().mean().sqrt()) if len(gram) > 1 else 0.0
