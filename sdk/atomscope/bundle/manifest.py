"""`manifest.json`: read with suspicion, written last."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import msgspec

from atomscope.bundle import layout
from atomscope.bundle._json import decode, encode
from atomscope.errors import BundleError
from atomscope.store import ObjectStore, is_key
from atomscope.text import visible
from atomscope.types.bundle import FileEntry, Manifest
from atomscope.types.spec import FORMAT_VERSION

KIND = "audit"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARED = re.compile(r"projects/[^/]+/extractions/.+")


class _Version(msgspec.Struct):
    """Of a manifest, only its version: a newer one may have another shape."""

    format_version: int


def decode_manifest(data: bytes) -> Manifest:
    """Decode and check a manifest.

    Raises `BundleError` when it is damaged, of a newer format, or lists a file twice, outside of the bundle
    or without a proper size and digest.
    """
    version = decode(data, _Version, layout.MANIFEST).format_version
    if not 1 <= version <= FORMAT_VERSION:
        advice = ": upgrade atomscope" if version > FORMAT_VERSION else ""
        raise BundleError(
            f"the bundle is of format {version} and this version reads 1 to {FORMAT_VERSION}{advice}"
        )
    manifest = decode(data, Manifest, layout.MANIFEST)
    if manifest.kind != KIND:
        raise BundleError(f"the bundle is of kind {visible(manifest.kind, 60)!r}, not {KIND!r}")
    check_entries(manifest.files)
    listed = {entry.path for entry in manifest.files}
    for path, key in (manifest.shared or {}).items():
        if path not in listed or not is_key(key) or not _SHARED.fullmatch(key):
            raise BundleError(f"the manifest may not share {visible(path, 200)} as {visible(key, 200)}")
    return manifest


def check_entries(files: Iterable[FileEntry]) -> None:
    """Raise `BundleError` unless these can be the files of one bundle."""
    seen: set[str] = set()
    for entry in files:
        name = visible(entry.path, 200)
        if not is_key(entry.path):
            raise BundleError(f"the manifest names a file outside of the bundle: {name}")
        if entry.path in seen or entry.path == layout.MANIFEST:
            raise BundleError(f"the manifest may not list {name}, or not twice")
        if entry.size < 0 or not _SHA256.fullmatch(entry.sha256):
            raise BundleError(f"the manifest gives no proper size and SHA-256 of {name}")
        seen.add(entry.path)


def write_manifest(
    store: ObjectStore,
    prefix: str,
    audit_id: str,
    files: Iterable[FileEntry],
    *,
    parent: str | None = None,
    shared: Mapping[str, str] | None = None,
) -> Manifest:
    """Write `manifest.json` under `prefix` (which ends in `/`, or is empty): the bundle is committed.

    `files` are those already in the store; those of `shared` under the key given. Raises `BundleError`, and
    commits nothing, when one of them is not there in its size; `StoreError` when the store refuses.
    """
    shared = shared or {}
    entries = sorted(files, key=lambda entry: entry.path)
    check_entries(entries)
    stored = {item.key.removeprefix(prefix): item.size for item in store.list(prefix)}
    for path, key in shared.items():
        if store.exists(key):
            stored[path] = store.size(key)
    for entry in entries:
        if stored.get(entry.path) != entry.size:
            found = f"{stored[entry.path]} bytes" if entry.path in stored else "nothing"
            raise BundleError(f"{entry.path} is to hold {entry.size} bytes and the store holds {found}")
    manifest = Manifest(
        audit_id=audit_id,
        created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        files=entries,
        parent=parent or msgspec.UNSET,
        shared=dict(shared) or msgspec.UNSET,
    )
    store.put_bytes(f"{prefix}{layout.MANIFEST}", encode(manifest))
    return manifest
