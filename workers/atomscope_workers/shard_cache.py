"""Extracted shards that local audits share: a folder each, named by its key, with its files' digests.

An audit takes from it what its plan would extract, and puts there what it extracted. Files are hard links
where the disk can, so that folders of it may be deleted at any time: whoever took one has it still.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from atomscope.bundle import layout
from atomscope.errors import InvalidInput
from atomscope.input_files import file_digest
from atomscope.types.bundle import StoredFile, StoredShard
from atomscope_workers.hard_links import link
from atomscope_workers.held_folders import held_folder, remove_left
from atomscope_workers.stages.context import KnownShard
from atomscope_workers.unit_sources import Entry


class ShardCache:
    """The folder; made when the first shard is put there."""

    def __init__(self, folder: Path) -> None:
        """Raises `InvalidInput` (`bad_path`) when it is not a folder."""
        self._folder = folder.expanduser().absolute()
        if self._folder.exists() and not self._folder.is_dir():
            raise InvalidInput("bad_path", f"{folder} is a file: --shard-cache names a folder")

    def known(self) -> list[KnownShard]:
        """The shards that are there."""
        entries = sorted(self._folder.glob(f"*/{layout.ENTRY}"))
        return [KnownShard(name=entry.parent.name, location=str(entry.parent)) for entry in entries]

    def take(self, location: str, index: int, files: Path) -> None:
        """Link the files of a known shard to where shard `index` has them below `files`.

        Raises `InvalidInput` (`cache_damaged`) where they are not what was put there.
        """
        folder = Path(location)
        entry = _entry(folder)
        for name, path in layout.STORED_FILES.items():
            target = files / path(index)
            try:
                link(folder / name, target)
            except FileNotFoundError as error:
                raise _damaged(folder, f"{name} is missing") from error
            # Of the link: what is found to be right stays so, whatever becomes of the cache.
            if _facts(target) != entry.files.get(name):
                raise _damaged(folder, f"{name} does not match its digest")
        os.utime(folder)

    def put(self, shard: StoredShard, index: int, files: Path) -> None:
        """Keep shard `index`, whose files lie below `files`, unless it is kept already."""
        target = self._folder / shard.name
        if target.exists():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with held_folder(self._folder) as scratch:
            found: dict[str, StoredFile] = {}
            for name, path in layout.STORED_FILES.items():
                found[name] = _facts(files / path(index))
                link(files / path(index), scratch / name)
            (scratch / layout.ENTRY).write_bytes(msgspec.json.encode(Entry(files=found)))
            try:
                scratch.rename(target)
            except OSError:
                if not target.is_dir():  # else another audit was faster
                    raise

    def remove_leftovers(self) -> None:
        """Remove what audits that were killed while they put something there left."""
        remove_left(self._folder)

    def lies_in(self, folder: Path) -> bool:
        """Whether the cache is this folder, or within it."""
        return self._folder.resolve().is_relative_to(folder.resolve())


def _entry(folder: Path) -> Entry:
    try:
        return msgspec.json.decode((folder / layout.ENTRY).read_bytes(), type=Entry)
    except FileNotFoundError as error:
        raise _damaged(folder, f"{layout.ENTRY} is missing") from error
    except msgspec.DecodeError as error:
        raise _damaged(folder, f"{layout.ENTRY} cannot be read ({error})") from error


def _facts(file: Path) -> StoredFile:
    return StoredFile(size=file.stat().st_size, sha256=file_digest(file))


def _damaged(folder: Path, what: str) -> InvalidInput:
    return InvalidInput(
        "cache_damaged", f"{folder}: {what}. Remove this folder, and the same command extracts its shard"
    )
