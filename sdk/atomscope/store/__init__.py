"""Object storage behind one small interface: a local folder or any S3-compatible store."""

from atomscope.store._interface import (
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    StoreError,
    check_key,
    is_key,
)
from atomscope.store._links import link_or_copy
from atomscope.store._local import LocalStore
from atomscope.store._open import open_store

__all__ = [
    "LocalStore",
    "ObjectInfo",
    "ObjectNotFound",
    "ObjectStore",
    "StoreError",
    "check_key",
    "is_key",
    "link_or_copy",
    "open_store",
]
