"""Safetensors headers, read and checked within bounds before any library maps the file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from atomscope_workers.models.folder import refuse

MAX_HEADER_BYTES = 64 * 2**20
"""Largest header accepted; safetensors itself stops at 100 MB."""

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of an element of each accepted dtype."""

FLOATING = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file."""

    dtype: str
    """As in the file: `F32`, `BF16`, ..."""
    shape: tuple[int, ...]


def read_header(path: Path, name: str) -> dict[str, TensorInfo]:
    """Tensors of the safetensors file at `path` (`name` in messages), by name.

    The file must be exactly its 8-byte length, its header and its data: offsets begin at 0, leave no gap,
    agree with dtype and shape, and end where the file ends. Raises `InvalidInput` (`missing_file`,
    `invalid_safetensors`).
    """
    if not path.is_file():
        raise refuse("missing_file", "this file is needed and is not there", file=name)
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise refuse(
                "invalid_safetensors",
                "a whole safetensors file is expected; this one is truncated",
                file=name,
            )
        raw = stream.read(length)
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise refuse(
            "invalid_safetensors", f"its header is not a JSON object ({error})", file=name
        ) from error
    if not isinstance(entries, dict):
        raise refuse("invalid_safetensors", "its header is not a JSON object", file=name)
    entries.pop("__metadata__", None)
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int]] = []
    for tensor, entry in entries.items():
        info, begin, end = _entry(entry, name, tensor)
        tensors[tensor] = info
        spans.append((begin, end))
    _check_spans(sorted(spans), size - 8 - length, name)
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name is given twice")
    return result


def _entry(entry: object, name: str, tensor: str) -> tuple[TensorInfo, int, int]:
    fault = refuse(
        "invalid_safetensors", "dtype, shape and data_offsets do not agree", file=name, field=tensor
    )
    if not isinstance(entry, dict):
        raise fault
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if dtype not in ITEM_BYTES:
        raise refuse(
            "invalid_safetensors",
            f"dtype {dtype!r} is not accepted; {', '.join(ITEM_BYTES)} are",
            file=name,
            field=tensor,
        )
    if not (_naturals(shape) and _naturals(offsets) and len(offsets) == 2):
        raise fault
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise fault
    return TensorInfo(dtype, tuple(shape)), begin, end


def _naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**48 for item in value)


def _check_spans(spans: list[tuple[int, int]], data_bytes: int, name: str) -> None:
    position = 0
    for begin, end in spans:
        if begin != position:
            raise refuse("invalid_safetensors", "its tensors overlap or leave gaps", file=name)
        position = end
    if position != data_bytes:
        raise refuse(
            "invalid_safetensors",
            f"a whole file is expected; its header describes {position} bytes of data, it holds {data_bytes}",
            file=name,
        )
