"""JSON files of a bundle, decoded strictly into their Structs."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from atomscope.errors import BundleError

T = TypeVar("T")


def encode(value: object) -> bytes:
    """Indented UTF-8 JSON with a final newline; the same value gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def decode(data: bytes, kind: type[T], path: str) -> T:
    """Decode the file `path` of a bundle; raises `BundleError` naming the file and the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is damaged: {error}") from error
