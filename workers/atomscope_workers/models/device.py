"""Which device and dtype a model pass uses."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache
from time import perf_counter
from types import TracebackType
from typing import Self

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


class Computed:
    """What a device has been asked to compute so far, to be read in another thread.

    As a context there, work on the device begins once that is done, and does not wait for what is asked for
    meanwhile. Tensors made before may be read within it, and none of them changed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event: torch.cuda.Event | None = None
        self._inside = ExitStack()
        if device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(device))

    def __enter__(self) -> Self:
        if self._event is not None:
            stream = torch.cuda.Stream(self._device)
            stream.wait_event(self._event)
            self._inside.enter_context(torch.cuda.stream(stream))
            # Memory of the tensors that are read is given back by its owner alone, who does not know of this.
            self._inside.callback(stream.synchronize)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside.close()
