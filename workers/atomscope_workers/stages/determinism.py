"""One plan on one kind of device gives identical bits: what that takes beyond a fixed order."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def deterministic(device: torch.device) -> Generator[None, None, None]:
    """Within it, CUDA uses deterministic kernels alone, and raises `RuntimeError` where it has none.

    The backward pass of fused attention adds up in whatever order its blocks finish unless it is told not to.
    New memory is not filled, as PyTorch does by default to show reads of what nobody wrote: that costs a pass
    over every tensor. On a CPU nothing needs to be asked for.
    """
    if device.type != "cuda":
        yield
        return
    # cuBLAS reads it with its first product; a workspace of its own keeps streams from sharing one.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    settings: Any = torch.utils.deterministic  # its one setting is declared nowhere
    filled = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = filled
