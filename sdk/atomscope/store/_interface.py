"""The interface of an object store, and the rule every key obeys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from atomscope.errors import AtomscopeError

MAX_KEY = 900
"""Characters of a key; S3 allows 1,024 bytes, prefix of the store included."""

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]{0,254}")


class StoreError(AtomscopeError):
    """The object store refused or failed an operation."""


class ObjectNotFound(StoreError):  # noqa: N818  (named as in the stores' own vocabulary)
    """No object under that key."""


class ObjectInfo(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    size: int
    """Bytes."""


def check_key(key: str) -> str:
    """Return `key` if every segment is plain.

    Raises `StoreError` on `..`, `//`, a leading `/` or odd characters.
    """
    if not is_key(key):
        raise StoreError(f"not a valid object key: {key!r}")
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix` if it could begin a valid key; `""` and a half-written last segment may.

    Raises `StoreError` otherwise.
    """
    folder, slash, rest = prefix.rpartition("/")
    if (slash and not folder) or (folder and not is_key(folder)) or (rest and not is_key(rest)):
        raise StoreError(f"not a valid key prefix: {prefix!r}")
    return prefix


def is_key(text: str) -> bool:
    """Whether `text` is a valid key."""
    return len(text) <= MAX_KEY and all(_SEGMENT.fullmatch(segment) for segment in text.split("/"))


def check_range(key: str, found: int, start: int, length: int) -> None:
    """Raises `StoreError` unless as many bytes were `found` as were asked for."""
    if found != length:
        raise StoreError(f"object {key!r}: {length} bytes from byte {start} on gave {found}")


class ObjectStore(Protocol):
    """Bytes under keys. Writes are atomic: a reader sees a whole object or none.

    Every method raises `StoreError` when the store cannot be reached or refuses, and
    `ObjectNotFound` where an object is needed and none is there.
    """

    @property
    def uri(self) -> str:
        """`file:///folder` or `s3://bucket/prefix`: what `open_store` takes to open it again."""
        ...

    def put_bytes(self, key: str, data: bytes) -> None: ...

    def put_file(self, key: str, path: Path) -> None:
        """Store the content of a file, streamed (multipart on S3)."""
        ...

    def get_bytes(self, key: str) -> bytes: ...

    def get_range(self, key: str, start: int, length: int) -> bytearray:
        """`length` bytes of an object from byte `start` on; `StoreError` where it ends before them."""
        ...

    def get_file(self, key: str, path: Path) -> None:
        """Write an object to `path` (its folder is made), streamed, atomically."""
        ...

    def open_read(self, key: str) -> BinaryIO:
        """A stream of the object's bytes, for sequential reading; the caller closes it."""
        ...

    def copy(self, source: str, target: str) -> None:
        """Copy within the store without moving the bytes through this process, where it can."""
        ...

    def exists(self, key: str) -> bool: ...

    def size(self, key: str) -> int:
        """Bytes of an object; raises `ObjectNotFound`."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key begins with `prefix`, by key."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens when it is not there."""
        ...

    def delete_prefix(self, prefix: str) -> int:
        """Remove every object whose key begins with `prefix` (which ends in `/`); how many."""
        ...

    def local_path(self, key: str) -> Path | None:
        """The file or folder behind a key or prefix when the store is a local folder, else None."""
        ...
