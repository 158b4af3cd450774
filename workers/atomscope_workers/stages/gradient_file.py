"""A gradient shard, written as its micro-batches come and read by parameter and row.

The file is safetensors: `document` (int64) and one tensor a LoRA parameter in float32, bfloat16 or float16;
beside float16, `scale/<parameter>` (float32, rows), by which a row is to be multiplied. Its shapes are known
before the first pass, so it is laid out at once and every row is written to its place: a worker holds
micro-batches of gradients, not a shard of them.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from atomscope.bundle.layout import DOCUMENT, SCALE
from atomscope_workers.pipeline.storage import DTYPES, GradientDtype, from_half, to_half

_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_BYTES = {"I64": 8, "F32": 4, "BF16": 2, "F16": 2}
_ALIGN = 8
"""Bytes to which safetensors pads its header."""


class GradientWriter:
    """A shard being written; a context manager that closes the file. A row never written is zero."""

    def __init__(
        self,
        path: Path,
        documents: NDArray[np.int64],
        shapes: Mapping[str, tuple[int, int]],
        dtype: GradientDtype = "float32",
    ) -> None:
        """Lay out the file for `documents`, physical rows that rise, and parameters of (d_out, d_in).

        Raises `ValueError` where documents do not rise, or a parameter has the name of another tensor.
        """
        if len(documents) > 1 and not (np.diff(documents) > 0).all():
            raise ValueError("the documents of a shard must rise")
        if any(name == DOCUMENT or name.startswith(SCALE) for name in shapes):
            raise ValueError(f"no parameter may be named {DOCUMENT!r}, or begin with {SCALE!r}")
        self._documents = documents
        self._dtype: GradientDtype = dtype
        rows = len(documents)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        starts: dict[str, int] = {}
        end = 0
        # The widest first, so that each tensor lies at a multiple of its item's size.
        scales = sorted(shapes) if dtype == "float16" else []
        for name, kind, shape in (
            (DOCUMENT, "I64", (rows,)),
            *((SCALE + name, "F32", (rows,)) for name in scales),
            *((name, _NAMES[dtype], (rows, *shapes[name])) for name in sorted(shapes)),
        ):
            start, end = end, end + int(np.prod(shape)) * _BYTES[kind]
            header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
            starts[name] = start
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % _ALIGN)
        begin = 8 + len(encoded)
        self._starts = {name: begin + start for name, start in starts.items()}
        self._shapes = dict(shapes)
        self._file = path.open("xb", buffering=0)
        try:
            self._put(0, struct.pack("<Q", len(encoded)) + encoded)
            self._file.truncate(begin + end)
            self._put(self._starts[DOCUMENT], documents.tobytes())
        except BaseException:
            self._file.close()
            raise

    def write(self, documents: Sequence[int], gradients: Mapping[str, torch.Tensor]) -> None:
        """Put the gradients (len(documents), d_out, d_in) of these physical rows in their places.

        Raises `KeyError` when a parameter is missing or unknown, or a row is not the shard's, `OSError` when
        the file cannot be written.
        """
        if gradients.keys() != self._shapes.keys():
            wrong = sorted(gradients.keys() ^ self._shapes.keys())
            raise KeyError(f"not the shard's parameters: {wrong[:3]}")
        physical = np.array(documents, dtype=np.int64)
        if not np.isin(physical, self._documents).all():
            raise KeyError(f"not all of {documents} are documents of the shard")
        rows = np.searchsorted(self._documents, physical)
        for name, tensor in gradients.items():
            values = tensor.float()
            if self._dtype == "float16":
                values, scale = to_half(values)
                self._put_rows(SCALE + name, rows, scale)
            self._put_rows(name, rows, values.to(DTYPES[self._dtype]))

    def _put_rows(self, name: str, rows: NDArray[np.int64], values: torch.Tensor) -> None:
        """Row i of `values` to place `rows[i]` of a tensor."""
        stored: NDArray[np.uint8] = values.reshape(len(rows), -1).cpu().contiguous().view(torch.uint8).numpy()
        start, size = self._starts[name], stored.shape[1]
        for row, data in zip(rows.tolist(), stored, strict=True):
            self._put(start + row * size, data.data)

    def _put(self, offset: int, data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:
            written = os.pwrite(self._file.fileno(), left, offset)
            left, offset = left[written:], offset + written

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class GradientShards:
    """Per-document gradients of every shard, read by parameter and position, one parameter at a time."""

    def __init__(self, paths: Sequence[Path], device: torch.device) -> None:
        """Open the shards in order; tensors are given on `device`."""
        self._files = [safe_open(path, "pt") for path in paths]
        self._device = device
        self.sizes: list[int] = [file.get_slice(DOCUMENT).get_shape()[0] for file in self._files]
        """Documents of each shard."""
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.names: list[str] = sorted(
            name for name in set(self._files[0].keys()) if name != DOCUMENT and not name.startswith(SCALE)
        )

    def shard(self, index: int, name: str) -> torch.Tensor:
        """float32 (rows, d_out, d_in) of one shard."""
        file = self._files[index]
        return self._widened(file, name, file.get_tensor(name))

    def rows(self, name: str, positions: NDArray[np.int64]) -> torch.Tensor:
        """float32 (len(positions), d_out, d_in); positions rise and count documents over all shards."""
        parts: list[torch.Tensor] = []
        for index, file in enumerate(self._files):
            start, stop = self._starts[index], self._starts[index + 1]
            local = positions[(positions >= start) & (positions < stop)] - start
            if len(local):
                wanted = torch.from_numpy(local)
                parts.append(self._widened(file, name, file.get_tensor(name)[wanted], wanted))
        if not parts:
            shape = self._files[0].get_slice(name).get_shape()[1:]
            return torch.zeros((0, *shape), device=self._device)
        return torch.cat(parts)

    def _widened(
        self,
        file: Any,  # noqa: ANN401  (safetensors is untyped)
        name: str,
        rows: torch.Tensor,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """float32 on the device of rows as they are stored, `wanted` among those of the file."""

        def scale() -> torch.Tensor:
            whole: torch.Tensor = file.get_tensor(SCALE + name)
            return whole if wanted is None else whole[wanted]

        return widened(rows, scale, self._device)


def widened(rows: torch.Tensor, scale: Callable[[], torch.Tensor], device: torch.device) -> torch.Tensor:
    """float32 on `device` of rows (n, ...) as they are stored; `scale()` are those of float16 (n,)."""
    rows = rows.to(device)
    return from_half(rows, scale().to(device)) if rows.dtype == torch.float16 else rows.float()
