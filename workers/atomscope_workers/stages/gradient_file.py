"""A gradient shard, written as its micro-batches come and read by parameter and row.

The file is safetensors: `document` (int64) and one float32 tensor a LoRA parameter. Its shapes are known
before the first pass, so it is laid out at once and rows go to their places through a memory map: a worker
holds one micro-batch of gradients, not a shard of them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

DOCUMENT = "document"
_ALIGN = 8
"""Bytes to which safetensors pads its header."""


class GradientWriter:
    """A shard being written; a context manager that flushes on leaving. A row never written is zero."""

    def __init__(
        self, path: Path, documents: NDArray[np.int64], shapes: Mapping[str, tuple[int, int]]
    ) -> None:
        """Lay out the file for `documents`, physical rows that rise, and parameters of (d_out, d_in)."""
        if len(documents) > 1 and not (np.diff(documents) > 0).all():
            raise ValueError("the documents of a shard must rise")
        self._documents = documents
        rows = len(documents)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        places: dict[str, tuple[int, tuple[int, ...]]] = {}
        end = 0
        for name, dtype, shape in (
            (DOCUMENT, "I64", (rows,)),
            *((name, "F32", (rows, *shapes[name])) for name in sorted(shapes)),
        ):
            start, end = end, end + int(np.prod(shape)) * (8 if dtype == "I64" else 4)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
            places[name] = (start, shape)
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % _ALIGN)
        begin = 8 + len(encoded)
        with path.open("xb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            file.truncate(begin + end)
        self._map = np.memmap(path, dtype=np.uint8, mode="r+", offset=begin, shape=(end,))
        self._map[: 8 * rows] = documents.view(np.uint8)
        self._tensors: dict[str, NDArray[np.float32]] = {
            name: self._map[start : start + 4 * int(np.prod(shape))].view(np.float32).reshape(shape)
            for name, (start, shape) in places.items()
            if name != DOCUMENT
        }

    def write(self, documents: Sequence[int], gradients: Mapping[str, torch.Tensor]) -> None:
        """Put the gradients (len(documents), d_out, d_in) of these physical rows in their places.

        Raises `KeyError` when a parameter is missing or unknown, or a row is not the shard's.
        """
        if gradients.keys() != self._tensors.keys():
            raise KeyError(
                f"not the shard's parameters: {sorted(gradients.keys() ^ self._tensors.keys())[:3]}"
            )
        physical = np.array(documents, dtype=np.int64)
        if not np.isin(physical, self._documents).all():
            raise KeyError(f"not all of {documents} are documents of the shard")
        rows = np.searchsorted(self._documents, physical)
        for name, tensor in gradients.items():
            self._tensors[name][rows] = tensor.float().cpu().numpy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tensors.clear()
        self._map.flush()
        del self._map


class GradientShards:
    """Per-document gradients of every shard, read by parameter and position, one parameter at a time."""

    def __init__(self, paths: Sequence[Path], device: torch.device) -> None:
        """Open the shards in order; tensors are given on `device`."""
        self._files = [safe_open(path, "pt") for path in paths]
        self._device = device
        self.sizes: list[int] = [file.get_slice(DOCUMENT).get_shape()[0] for file in self._files]
        """Documents of each shard."""
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.names: list[str] = sorted(set(self._files[0].keys()) - {DOCUMENT})

    def shard(self, index: int, name: str) -> torch.Tensor:
        """float32 (rows, d_out, d_in) of one shard."""
        tensor: torch.Tensor = self._files[index].get_tensor(name)
        return tensor.to(self._device)

    def rows(self, name: str, positions: NDArray[np.int64]) -> torch.Tensor:
        """float32 (len(positions), d_out, d_in); positions rise and count documents over all shards."""
        parts: list[torch.Tensor] = []
        for index, file in enumerate(self._files):
            start, stop = self._starts[index], self._starts[index + 1]
            local = positions[(positions >= start) & (positions < stop)] - start
            if len(local):
                tensor: torch.Tensor = file.get_tensor(name)
                parts.append(tensor[torch.from_numpy(local)])
        if not parts:
            shape = self._files[0].get_slice(name).get_shape()[1:]
            return torch.zeros((0, *shape), device=self._device)
        return torch.cat(parts).to(self._device)
