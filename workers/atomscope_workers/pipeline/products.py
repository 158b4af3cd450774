"""Sums of outer products in float32, at the speed of the numbers that they are made of.

What a model computes in bfloat16 is exact in bfloat16, so its products may be multiplied in it: the products
of two such numbers are exact in float32, and are added up in it. A CPU with AMX takes about a third of the
time, a GPU less, and oneDNN multiplies float32 as it is where there is neither; the sum is that of a float32
product but for the order of its additions. On CUDA it is TF32 that multiplies: it has the range of float32,
and holds every bit of a bfloat16 number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Self

import torch

from atomscope_workers.models.precision import bfloat16_products

SMALLEST = 64
"""Columns from which multiplying in bfloat16 repays the conversion."""
BLOCK = 768
"""Columns of a block: of wider matrices only the blocks on and below the diagonal are multiplied and held."""
NARROW = 192
"""Of a block on a CPU, whose products are as fast in strips this narrow; but for bfloat16 under AMX, where a
product takes less than its numbers do to get there. A torch that does not tell is one without AMX."""


class OuterSum:
    """sum_t x_t x_t^T over rows x_t of d columns, by its blocks on and below the diagonal."""

    def __init__(self, blocks: list[torch.Tensor]) -> None:
        """Each block holds rows of the matrix up to and with its diagonal block, from the first on."""
        self._blocks = blocks

    @classmethod
    def zeros(cls, size: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Self:
        """The sum of no rows of `size` columns, float32, in the blocks that suit rows of `dtype`."""
        fast = device.type != "cpu" or (dtype == torch.bfloat16 and _has_amx())
        step = BLOCK if fast else NARROW
        return cls([torch.zeros(own.stop - own.start, own.stop, device=device) for own in _cuts(size, step)])

    @classmethod
    def of(cls, matrix: torch.Tensor) -> Self:
        """A symmetric matrix (d, d), of whose entries those above the diagonal blocks are not read."""
        return cls([matrix[own, : own.stop].clone() for own in _cuts(matrix.shape[0], BLOCK)])

    @property
    def size(self) -> int:
        """d."""
        return self._blocks[-1].shape[1]

    def add(self, rows: torch.Tensor) -> None:
        """Add rows (tokens, d) of any float dtype, on the device of the sum."""
        exact = rows.dtype == torch.bfloat16 and rows.shape[1] >= SMALLEST
        whole = rows.float()
        with bfloat16_products(rows.device) if exact else nullcontext():
            for own, block in self._own():
                block.addmm_(whole[:, own].T, whole[:, : own.stop])

    def merge(self, other: OuterSum) -> None:
        """Add another sum of as many columns, in the same blocks."""
        for block, more in zip(self._blocks, other._blocks, strict=True):
            block.add_(more)

    def double(self) -> OuterSum:
        """A copy in float64, which may be added to without rounding to float32."""
        return OuterSum([block.to(torch.float64, copy=True) for block in self._blocks])

    def matrix(self) -> torch.Tensor:
        """All of it (d, d), symmetric, in the dtype of the sum."""
        found = self._blocks[-1].new_empty(self.size, self.size)
        for own, block in self._own():
            found[own, : own.stop] = block
            found[: own.start, own] = block[:, : own.start].T
        return found

    def _own(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Blocks with the rows that they hold."""
        for block in self._blocks:
            yield slice(block.shape[1] - block.shape[0], block.shape[1]), block


def held_numbers(size: int) -> int:
    """Numbers that a sum of so many columns holds at most."""
    return sum((own.stop - own.start) * own.stop for own in _cuts(size, BLOCK))


def _has_amx() -> bool:
    """Whether the CPU multiplies bfloat16 in tiles."""
    capabilities: Callable[[], Mapping[str, object]] = getattr(torch.cpu, "get_capabilities", dict)
    return bool(capabilities().get("amx_bf16"))


def _cuts(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
