"""Which device and dtype a model pass uses."""

from __future__ import annotations

import torch

from atomscope.types.spec import AuditConfig


def choose_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def choose_dtype(config: AuditConfig, device: torch.device) -> torch.dtype:
    """The compute dtype: as asked, or for `auto` bfloat16 on CUDA and float32 on a CPU."""
    if config.dtype == "float32":
        return torch.float32
    if config.dtype == "bfloat16":
        return torch.bfloat16
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` or `bfloat16`, as `Plan.compute_dtype` records it."""
    return str(dtype).removeprefix("torch.")


def dtype_of_name(name: str) -> torch.dtype:
    """The inverse of `dtype_name`; raises `ValueError` on any other name."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in dtypes:
        raise ValueError(f"not a compute dtype: {name!r}")
    return dtypes[name]
