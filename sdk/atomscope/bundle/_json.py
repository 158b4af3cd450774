"""JSON files of a bundle, decoded strictly into their Structs."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import msgspec

from atomscope.errors import BundleError
from atomscope.text import visible

T = TypeVar("T")

MAX_JSON_BYTES = 1 << 29
"""Longest JSON file that is read; the plan of two million documents takes about 40 MB."""

_SHOWN = 300


def encode(value: object) -> bytes:
    """Indented UTF-8 JSON with a final newline; the same value gives the same bytes.

    Raises `BundleError` for a number that JSON cannot hold, which would otherwise be written as null.
    """
    _check_finite(msgspec.to_builtins(value))
    return msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=2) + b"\n"


def decode(data: bytes, kind: type[T], path: str) -> T:
    """Decode the file `path` of a bundle; raises `BundleError` naming the file and the field."""
    if len(data) > MAX_JSON_BYTES:
        raise BundleError(f"{path} holds {len(data)} bytes; up to {MAX_JSON_BYTES} are read")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is damaged: {visible(str(error), _SHOWN)}") from error


def _check_finite(value: Any) -> None:  # noqa: ANN401  (anything that JSON can hold)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BundleError(f"{value} cannot be written as JSON")
    elif isinstance(value, dict):
        for item in value.values():
            _check_finite(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_finite(item)
