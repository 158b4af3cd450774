"""Writing GGUF, version 3: facts and float32 tensors in one file, as ggml reads them.

The layout is that of ggml's `docs/gguf.md`: magic, version, counts; the facts; a name, shape and offset for
each tensor; the data, each tensor at a multiple of 32 bytes. Numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atomscope.errors import SteeringError

_MAGIC = b"GGUF"
_VERSION = 3
_ALIGNMENT = 32
_STRING, _FLOAT32 = 8, 6
"""Types of facts."""
_F32 = 0
"""Type of the tensors."""


def write_gguf(
    path: Path, facts: Mapping[str, str | float], tensors: Mapping[str, NDArray[np.float32]]
) -> None:
    """Write a GGUF file; a fact is text or a float32. Raises `SteeringError` when it cannot be written."""
    head = bytearray(_MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(facts)))
    for key, value in facts.items():
        head += _text(key)
        if isinstance(value, str):
            head += struct.pack("<I", _STRING) + _text(value)
        else:
            head += struct.pack("<If", _FLOAT32, value)
    offset = 0
    for name, tensor in tensors.items():
        # ggml counts dimensions from the one that lies together in memory, numpy from the other end.
        shape = tensor.shape[::-1]
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, _F32, offset)
        offset += _padded(tensor.nbytes)
    try:
        with path.open("wb") as file:
            file.write(head.ljust(_padded(len(head)), b"\0"))
            for tensor in tensors.values():
                data = np.ascontiguousarray(tensor, dtype="<f4").tobytes()
                file.write(data.ljust(_padded(len(data)), b"\0"))
    except OSError as error:
        raise SteeringError(f"cannot write {path.name}: {error}") from error


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
