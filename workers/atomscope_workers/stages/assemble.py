"""Putting a bundle together from the outputs of its units."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from atomscope.bundle import json_schemas, layout, write_manifest
from atomscope.store import ObjectStore
from atomscope.types.bundle import FileEntry, Manifest


def assemble_bundle(
    store: ObjectStore,
    sources: Mapping[str, str],
    target_prefix: str,
    audit_id: str,
    *,
    keeps_gradients: bool = True,
    parent: str | None = None,
    shared: Mapping[str, FileEntry] | None = None,
) -> Manifest:
    """Copy every source into the bundle, add the JSON Schemas, then commit it by its manifest.

    `sources` maps bundle paths to keys of the store; paths under `work/` are left out, and gradients unless
    they are kept. `target_prefix` ends in `/`. Sources whose entry is in `shared` stay where they are, and
    the manifest names their keys. Raises `StoreError`; nothing is committed then, and the copies may be made
    again.
    """
    shared = shared or {}
    files: list[FileEntry] = []
    for path, key in sorted(sources.items()):
        if path.startswith(layout.WORK) or (path.startswith(layout.GRADIENTS) and not keeps_gradients):
            continue
        if path in shared:
            files.append(shared[path])
            continue
        digest, size = hashlib.sha256(), 0
        with store.open_read(key) as source:
            while block := source.read(1 << 20):
                digest.update(block)
                size += len(block)
        store.copy(key, f"{target_prefix}{path}")
        files.append(FileEntry(path=path, size=size, sha256=digest.hexdigest()))
    for path, content in json_schemas().items():
        store.put_bytes(f"{target_prefix}{path}", content)
        digest = hashlib.sha256(content)
        files.append(FileEntry(path=path, size=len(content), sha256=digest.hexdigest()))
    return write_manifest(
        store,
        target_prefix,
        audit_id,
        files,
        parent=parent,
        shared={path: sources[path] for path in shared},
    )
