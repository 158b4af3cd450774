"""Committing a bundle: its manifest, written last."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from atomscope.bundle import layout
from atomscope.bundle._json import encode
from atomscope.store import ObjectStore
from atomscope.types.bundle import FileEntry, Manifest


def write_manifest(store: ObjectStore, prefix: str, audit_id: str, files: Iterable[FileEntry]) -> Manifest:
    """Write `manifest.json` under `prefix` (which ends in `/`, or is empty): the bundle is committed.

    `files` are those already in the store; raises `StoreError` when the store refuses.
    """
    manifest = Manifest(
        audit_id=audit_id,
        created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        files=sorted(files, key=lambda entry: entry.path),
    )
    store.put_bytes(f"{prefix}{layout.MANIFEST}", encode(manifest))
    return manifest
