"""From an address to a store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from atomscope.store._interface import ObjectStore, StoreError
from atomscope.store._local import LocalStore
from atomscope.store._s3 import S3Store


def open_store(uri: str, *, create: bool = True) -> ObjectStore:
    """Open `file:///folder`, an absolute path, or `s3://bucket[/prefix]`.

    A missing folder is made, unless `create` is False: then `ObjectNotFound` is raised. Raises `StoreError`
    on any other address, and for S3 when boto3 is not installed.
    """
    if uri.startswith("/"):
        return LocalStore(Path(uri), create=create)  # a path as it is: `?`, `#` and `%` mean nothing in it
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise StoreError(f"not an address of a store: {uri!r}") from error
    plain = not parts.query and not parts.fragment
    if parts.scheme == "s3" and plain:
        return S3Store(bucket=parts.netloc, prefix=parts.path.strip("/"))
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path and plain:
        return LocalStore(Path(unquote(parts.path)), create=create)
    raise StoreError(
        f"not an address of a store: {uri!r}; give file:///folder, /folder or s3://bucket/prefix"
    )
