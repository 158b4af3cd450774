"""Inputs of audits on this machine: read where they lie, or fetched once into a cache by their digest."""

from __future__ import annotations

from pathlib import Path

from atomscope.errors import InvalidInput
from atomscope.input_files import file_digest, folder_digest
from atomscope.store import ObjectStore
from atomscope.types.spec import InputRef
from atomscope_workers.held_folders import held_folder
from atomscope_workers.worker_cache import inputs_folder


def fetched_input(store: ObjectStore, ref: InputRef) -> Path:
    """An input as a local file or folder.

    Raises `InvalidInput`: `input_missing` when it is not in the store, `input_changed` when it differs.
    """
    local = store.local_path(ref.location)
    if local is None:
        return _fetched(store, ref)
    if not local.exists():
        raise InvalidInput("input_missing", f"{ref.id} is not in the store")
    return local


def _fetched(store: ObjectStore, ref: InputRef) -> Path:
    """The input in a local cache keyed by its digest, fetched once; raises `InvalidInput` if it differs."""
    root = inputs_folder()
    name = ref.location.rsplit("/", 1)[-1]
    # The ending of a data set says how the same bytes are read.
    target = root / (f"{ref.sha256}-{name}" if name else ref.sha256)
    if not target.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with held_folder(root) as scratch:
            if name:
                store.get_file(ref.location, scratch / name)
                digest = file_digest(scratch / name)
            else:
                for item in store.list(ref.location):
                    store.get_file(item.key, scratch / item.key.removeprefix(ref.location))
                files = {
                    file.relative_to(scratch).as_posix(): file_digest(file)
                    for file in scratch.rglob("*")
                    if file.is_file()
                }
                digest = folder_digest(files)
            if digest != ref.sha256:
                raise InvalidInput("input_changed", f"{ref.id} is not what it was when the audit was made")
            try:
                scratch.rename(target)
            except OSError:
                if not target.is_dir():  # else another worker was faster
                    raise
    return target / name if name else target
