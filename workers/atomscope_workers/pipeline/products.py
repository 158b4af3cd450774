"""Sums of outer products in float32, at the speed of the numbers that they are made of.

What a model computes in bfloat16 is exact in bfloat16, so its products may be multiplied in it: the products
of two such numbers are exact in float32, and are added up in it. A CPU with bfloat16 arithmetic takes about a
third of the time, and the sum is that of a float32 product but for the order of its additions.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

SMALLEST = 64
"""Columns from which multiplying in bfloat16 repays the conversion."""
BLOCK = 768
"""Columns of a block: beyond them only the blocks on and below the diagonal are multiplied."""


def outer_sum(rows: torch.Tensor) -> torch.Tensor:
    """sum_t x_t x_t^T of rows (tokens, d) of any float dtype: float32 (d, d)."""
    whole = rows.float()
    if rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and rows.shape[1] >= SMALLEST:
        with _bfloat16_products():
            return _symmetric(whole)
    return _symmetric(whole)


def _symmetric(rows: torch.Tensor) -> torch.Tensor:
    """X^T X of float32 rows X, the blocks above its diagonal taken from those below."""
    size = rows.shape[1]
    if size <= BLOCK:
        return rows.T @ rows
    found = rows.new_empty(size, size)
    for start in range(0, size, BLOCK):
        own = slice(start, min(start + BLOCK, size))
        found[own, : own.stop] = rows[:, own].T @ rows[:, : own.stop]
        found[:start, own] = found[own, :start].T
    return found


@contextmanager
def _bfloat16_products() -> Generator[None]:
    """Within it, oneDNN multiplies float32 matrices in bfloat16 where the CPU can, from torch 2.9 on."""
    matmul: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if matmul is None:
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
