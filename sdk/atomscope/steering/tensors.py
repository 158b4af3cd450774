"""Safetensors as numpy arrays keyed by name, bfloat16 included."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from atomscope.errors import SteeringError

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format itself."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Every tensor of a safetensors file, by name; float64, float32, float16 or bfloat16.

    The arrays are read-only views of a memory map. Raises `SteeringError` when the file is not
    safetensors, is truncated, or holds another dtype.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise SteeringError(f"{path.name} is not a safetensors file, or is truncated")
            header = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
        header.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(raw, type=_Tensor) for name, raw in header.items()}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SteeringError(f"cannot read {path.name}: {error}") from error
    body = (
        np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length)
        if size > 8 + length
        else np.empty(0, np.uint8)
    )
    return {name: _view(path.name, name, entry, body) for name, entry in entries.items()}


def _view(file: str, name: str, entry: _Tensor, body: NDArray[np.uint8]) -> NDArray[Any]:
    dtype = _DTYPES.get(entry.dtype)
    if dtype is None:
        raise SteeringError(f"{file}: {name} is {entry.dtype}; accepted: {', '.join(_DTYPES)}")
    start, stop = entry.data_offsets
    count = int(np.prod(entry.shape, dtype=np.int64))
    if (
        min(entry.shape, default=0) < 0
        or not 0 <= start <= stop <= body.size
        or stop - start != count * dtype.itemsize
    ):
        raise SteeringError(f"{file}: the bytes of {name} do not fit its shape, or the file is truncated")
    return body[start:stop].view(dtype).reshape(entry.shape)


def write_tensors(tensors: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Write tensors in their own dtypes, with the metadata that PEFT looks for."""
    try:
        save_file(
            {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path, {"format": "pt"}
        )
    except (SafetensorError, OSError) as error:
        raise SteeringError(f"cannot write {path.name}: {error}") from error
