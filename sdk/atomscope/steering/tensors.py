"""Safetensors as numpy arrays keyed by name, bfloat16 included.

The reader is our own because `safetensors.numpy` knows no bfloat16, which most adapters come in. It trusts
nothing: every size in the header is checked against the file before it is used.
"""

from __future__ import annotations

import math
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
from atomscope.text import visible

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format itself."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_INTEGERS: dict[str, np.dtype[Any]] = {"I64": np.dtype(np.int64)}


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_tensors(path: Path, *, integers: bool = False) -> dict[str, NDArray[Any]]:
    """Every tensor of a safetensors file, by name; float64, float32, float16 or bfloat16.

    With `integers` also int64, which no adapter holds but a gradient shard does. The arrays are read-only
    views of a memory map. Raises `SteeringError` when the file is not safetensors, is truncated, holds
    another dtype, or holds bytes that are no tensor's or two tensors'.
    """
    accepted = _DTYPES | _INTEGERS if integers else _DTYPES
    entries, start, size, _ = _read_header(path)
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        dtype = accepted.get(entry.dtype)
        if dtype is None:
            raise SteeringError(
                f"{path.name}: {visible(name)} is {visible(entry.dtype)}; accepted: {', '.join(accepted)}"
            )
        first, last = entry.data_offsets
        needed = math.prod(entry.shape) * dtype.itemsize
        if min(entry.shape, default=0) < 0 or first != end or last - first != needed:
            raise SteeringError(f"{path.name}: the bytes of {visible(name)} do not fit its shape")
        end = last
    if end != size:
        raise SteeringError(f"{path.name} is truncated: it holds {size} bytes where {end} were announced")
    # A memory map may not be empty.
    body = np.memmap(path, dtype=np.uint8, mode="r", offset=start) if size else np.empty(0, np.uint8)
    return {
        name: body[slice(*entry.data_offsets)].view(accepted[entry.dtype]).reshape(entry.shape)
        for name, entry in entries.items()
    }


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; raises `SteeringError` when its header cannot be read."""
    return _read_header(path)[3]


def _read_header(path: Path) -> tuple[dict[str, _Tensor], int, int, dict[str, str]]:
    """The tensors that a file announces, where its data starts, its bytes of data, and its metadata."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise SteeringError(f"{path.name} is not a safetensors file, or is truncated")
            header = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
        metadata = header.pop("__metadata__", None)
        told = msgspec.json.decode(metadata, type=dict[str, str]) if metadata is not None else {}
        entries = {name: msgspec.json.decode(raw, type=_Tensor) for name, raw in header.items()}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SteeringError(f"cannot read {path.name}: {error}") from error
    return entries, 8 + length, size - 8 - length, told


def write_tensors(
    tensors: Mapping[str, NDArray[Any]], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors in their own dtypes; the metadata is by default what PEFT looks for."""
    told = {"format": "pt"} if metadata is None else dict(metadata)
    try:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path, told)
    except (SafetensorError, OSError) as error:
        raise SteeringError(f"cannot write {path.name}: {error}") from error
