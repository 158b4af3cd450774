"""Products of float32 matrices that hold bfloat16 numbers, at the speed of these."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def bfloat16_products(device: torch.device) -> Generator[None]:
    """Within it, float32 matrices are multiplied in bfloat16, or TF32, where `device` can.

    By oneDNN and cuBLAS, from torch 2.9 on.
    """
    backend: Any = {"cpu": torch.backends.mkldnn, "cuda": torch.backends.cuda}.get(device.type)
    matmul: Any = getattr(backend, "matmul", None)
    if not hasattr(matmul, "fp32_precision"):
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16" if device.type == "cpu" else "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before
