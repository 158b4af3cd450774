"""Which device and dtype a model pass uses."""

from __future__ import annotations

from functools import cache
from time import perf_counter

import torch

from atomscope.types.spec import AuditConfig


def choose_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def choose_dtype(config: AuditConfig, device: torch.device) -> torch.dtype:
    """The compute dtype: as asked, or for `auto` bfloat16 on CUDA and on a CPU that multiplies it faster."""
    if config.dtype == "float32":
        return torch.float32
    if config.dtype == "bfloat16":
        return torch.bfloat16
    return torch.bfloat16 if device.type == "cuda" or _multiplies_bfloat16_faster() else torch.float32


@cache
def _multiplies_bfloat16_faster() -> bool:
    """Whether this CPU has real bfloat16 arithmetic, by the clock: elsewhere it is emulated, and slow.

    Half as fast again is the line, well away from both: native bfloat16 takes half the time or less.
    """
    fastest: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(512, 512, dtype=dtype)
        times: list[float] = []
        for _ in range(8):
            start = perf_counter()
            torch.matmul(matrix, matrix)
            times.append(perf_counter() - start)
        fastest[dtype] = min(times)
    return fastest[torch.float32] > 1.5 * fastest[torch.bfloat16]


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` or `bfloat16`, as `Plan.compute_dtype` records it."""
    return str(dtype).removeprefix("torch.")


def dtype_of_name(name: str) -> torch.dtype:
    """The inverse of `dtype_name`; raises `ValueError` on any other name."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in dtypes:
        raise ValueError(f"not a compute dtype: {name!r}")
    return dtypes[name]
