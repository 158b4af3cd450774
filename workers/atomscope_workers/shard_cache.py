"""Extracted shards that local audits share: a folder each, named by its key, with its files' digests.

An audit takes from it what its plan would extract, and puts there what it extracted. Files are hard links
where the disk can, so that folders of it may be deleted at any time: whoever took one has it still.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from atomscope.bundle import layout
from atomscope.errors import InvalidInput
from atomscope.types.bundle import StoredFile, StoredShard
from atomscope_workers.hard_links import link
from atomscope_workers.held_folders import held_folder, remove_left
from atomscope_workers.stages.context import KnownShard
from atomscope_workers.stored_entry import Entry, stored_file


class ShardCache:
    """The folder, which is made if need be."""

    def __init__(self, folder: Path) -> None:
        """Raises `InvalidInput` (`bad_path`) when it is not a folder."""
        self.folder = folder.expanduser().absolute()
        if self.folder.exists() and not self.folder.is_dir():
            raise InvalidInput("bad_path", f"{folder} is a file: --shard-cache names a folder")

    def lies_in(self, folder: Path) -> bool:
        """Whether the cache is this folder, or within it."""
        return self.folder.resolve().is_relative_to(folder.resolve())

    def open(self) -> None:
        """Make the folder, and remove what audits that were killed while they put something there left.

        Raises `InvalidInput` (`bad_path`) where nothing can be written, before anything is extracted.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with held_folder(self.folder):
                pass
        except OSError as error:
            raise InvalidInput(
                "bad_path", f"the shard cache {self.folder} cannot be written to: {error.strerror}"
            ) from error
        remove_left(self.folder)

    def known(self) -> list[KnownShard]:
        """The shards that are there."""
        entries = sorted(self.folder.glob(f"*/{layout.ENTRY}"))
        return [KnownShard(name=entry.parent.name, location=str(entry.parent)) for entry in entries]

    def take(self, shards: Sequence[StoredShard], files: Path) -> None:
        """Link the files of the known ones of a plan's shards to where it has them below `files`.

        Raises `InvalidInput` (`cache_damaged`) where they are not what was put there.
        """
        taken = {Path(at.location): index for index, at in enumerate(shards) if at.location is not None}
        # All before the first is looked through, which takes its time: from here on the cache may go.
        entries = {folder: _linked(folder, index, files) for folder, index in taken.items()}
        for folder, index in taken.items():
            for name, path in layout.STORED_FILES.items():
                if stored_file(files / path(index)) != entries[folder].files.get(name):
                    raise _damaged(folder, f"{name} does not match its digest")
            with suppress(OSError):  # of another user, or gone: it only tells when it was used
                os.utime(folder)

    def put(self, shard: StoredShard, index: int, files: Path) -> None:
        """Keep shard `index`, whose files lie below `files`, unless it is kept already.

        Raises `InvalidInput` (`cache_unwritable`); the audit has lost nothing then.
        """
        target = self.folder / shard.name
        try:
            if not (target / layout.ENTRY).is_file():
                self._put(target, index, files)
        except OSError as error:
            raise InvalidInput(
                "cache_unwritable",
                f"the shard cache {self.folder} does not take what was extracted: {error.strerror}. The same "
                "command goes on once it does, or without --shard-cache",
            ) from error

    def _put(self, target: Path, index: int, files: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with held_folder(self.folder) as scratch:
            found: dict[str, StoredFile] = {}
            for name, path in layout.STORED_FILES.items():
                found[name] = stored_file(files / path(index))
                link(files / path(index), scratch / name)
            (scratch / layout.ENTRY).write_bytes(msgspec.json.encode(Entry(files=found)))
            if target.exists() and not (target / layout.ENTRY).is_file():
                target.rename(scratch.with_name("half-removed"))
            try:
                scratch.rename(target)
            except OSError:
                if not target.is_dir():  # else another audit was faster
                    raise


def _linked(folder: Path, index: int, files: Path) -> Entry:
    """Link the files of an entry, which is what is given."""
    entry = _entry(folder)
    for name, path in layout.STORED_FILES.items():
        try:
            link(folder / name, files / path(index))
        except FileNotFoundError as error:
            raise _damaged(folder, f"{name} is missing") from error
    return entry


def _entry(folder: Path) -> Entry:
    try:
        return msgspec.json.decode((folder / layout.ENTRY).read_bytes(), type=Entry)
    except FileNotFoundError as error:
        raise _damaged(folder, f"{layout.ENTRY} is missing") from error
    except msgspec.DecodeError as error:
        raise _damaged(folder, f"{layout.ENTRY} cannot be read ({error})") from error


def _damaged(folder: Path, what: str) -> InvalidInput:
    if not folder.exists():
        return InvalidInput(
            "cache_damaged", f"{folder} was removed meanwhile: the same command goes on without it"
        )
    return InvalidInput(
        "cache_damaged", f"{folder}: {what}. Remove this folder, and the same command extracts its shard"
    )
