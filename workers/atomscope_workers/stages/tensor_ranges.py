"""Tensors of a safetensors file, each read by itself: of a large file no more is fetched than is wanted."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Container
from typing import Any

import torch

ReadRange = Callable[[int, int], bytearray]
"""From the first byte and how many to these bytes, which are then the tensor's."""

_LENGTH = struct.Struct("<Q")
_MOST_HEADER = 100_000_000
"""Bytes of the longest header that safetensors reads."""
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
"""As the format names them, what the stages write."""


class TensorRanges:
    """The tensors of a file whose bytes are read by `read`; its header is read at once."""

    def __init__(self, read: ReadRange, wanted: Container[str] | None = None) -> None:
        """Raises `ValueError` for a file that is not safetensors.

        Of a header only the tensors `wanted` are remembered: those of many files may be held at a time.
        """
        (size,) = _LENGTH.unpack(read(0, _LENGTH.size))
        if size > _MOST_HEADER:
            raise ValueError(f"a header of {size} bytes is no header of safetensors")
        header: dict[str, Any] = json.loads(read(_LENGTH.size, size))
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self._entries = {name: entry for name, entry in header.items() if wanted is None or name in wanted}
        self._begin = _LENGTH.size + size
        self._read = read

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises `KeyError` for a tensor that is not there, as the others do."""
        return tuple(self._entries[name]["shape"])

    def tensor(self, name: str) -> torch.Tensor:
        """The whole of it, on the CPU."""
        return self.rows(name, 0, self.shape(name)[0])

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Its rows `start:stop`, which must be there; `ValueError` for a dtype that no stage writes."""
        count, *rest = self.shape(name)
        dtype = self._dtype(name)
        begin, end = self._entries[name]["data_offsets"]
        row = (end - begin) // max(count, 1)
        data = self._read(self._begin + begin + start * row, (stop - start) * row)
        # No tensor is made of a buffer of no bytes.
        found = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return found.view(stop - start, *rest)

    def _dtype(self, name: str) -> torch.dtype:
        kind = self._entries[name]["dtype"]
        if kind not in _DTYPES:
            raise ValueError(f"tensor {name!r} holds {kind}, and only {', '.join(_DTYPES)} are read")
        return _DTYPES[kind]
