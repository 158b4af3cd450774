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


def outer_sum(rows: torch.Tensor) -> torch.Tensor:
    """sum_t x_t x_t^T of rows (tokens, d) of any float dtype: float32 (d, d)."""
    whole = rows.float()
    if rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and rows.shape[1] >= SMALLEST:
        with _bfloat16_products():
            return whole.T @ whole
    return whole.T @ whole


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
