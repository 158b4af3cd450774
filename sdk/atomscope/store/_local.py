"""A folder as an object store: one file an object, written atomically."""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from atomscope.store._interface import (
    ObjectInfo,
    ObjectNotFound,
    StoreError,
    check_key,
    check_prefix,
    check_range,
    is_key,
)
from atomscope.store._links import copy_synced, link_or_copy

_TEMPORARY = ".tmp-"
"""Begins the names of files being written; no key has such a segment, so no listing shows them."""

_BLOCK = 1 << 20
_RACES = 20
"""Times a write is begun again because a deletion just removed the folder it was going to."""


class LocalStore:
    """Objects under `root`, an absolute folder, which is made when it is missing.

    Objects are immutable: a write replaces the whole file and never changes one in place, so `copy` may
    link. A key that leads through a symbolic link below the root is refused, so that a planted link
    cannot lead out of it. As folders are folders here, one key cannot be another's folder (`a` and `a/b`).
    """

    def __init__(self, root: Path, *, create: bool = True) -> None:
        """Open the folder; raises `StoreError`, or `ObjectNotFound` when it is missing and not `create`."""
        if not root.is_absolute():
            raise StoreError(f"a local store needs an absolute folder, not {str(root)!r}")
        try:
            if create:
                root.mkdir(parents=True, exist_ok=True)
            elif not root.is_dir():
                raise ObjectNotFound(f"no such folder: {root}")
            self._root = root.resolve(strict=True)
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot make the folder of the local store: {error}") from error

    @property
    def uri(self) -> str:
        return self._root.as_uri()

    def put_bytes(self, key: str, data: bytes) -> None:
        self._write(key, lambda temporary: _write_synced(temporary, data))

    def put_file(self, key: str, path: Path) -> None:
        # Bytes are copied, never linked: the file stays its owner's, who may go on writing to it.
        self._write(key, lambda temporary: copy_synced(path, temporary))

    def move_file(self, key: str, path: Path) -> None:
        """The same as `put_file` of a file that its owner gives up: it is gone afterwards."""
        # Given up only once the object is in its place: a write that meets a deletion is tried again.
        self._write(key, lambda temporary: _link_synced(path, temporary))
        path.unlink()

    def get_bytes(self, key: str) -> bytes:
        with self.open_read(key) as source, _told("read", key):
            return source.read()

    def get_range(self, key: str, start: int, length: int) -> bytearray:
        found = bytearray(length)
        path = self._existing(key)
        with _told("read", key), path.open("rb") as source:
            source.seek(start)
            check_range(key, source.readinto(found), start, length)
        return found

    def get_file(self, key: str, path: Path) -> None:
        temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
        try:
            with self.open_read(key) as source, _told("fetch", key):
                path.parent.mkdir(parents=True, exist_ok=True)
                with temporary.open("xb") as sink:
                    shutil.copyfileobj(source, sink, _BLOCK)
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def open_read(self, key: str) -> BinaryIO:
        path = self._existing(key)
        with _told("read", key):
            return path.open("rb")

    def copy(self, source: str, target: str) -> None:
        origin = self._existing(source)
        if check_key(target) == source:
            return
        self._write(target, lambda temporary: link_or_copy(origin, temporary))

    def exists(self, key: str) -> bool:
        try:
            self._existing(key)
        except ObjectNotFound:
            return False
        return True

    def size(self, key: str) -> int:
        path = self._existing(key)
        with _told("read", key):
            return path.stat().st_size

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = check_prefix(prefix).rpartition("/")[0]
        start = self._path(folder) if folder else self._root
        return self._walk(start, f"{folder}/" if folder else "", prefix)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _told("delete", key), suppress(FileNotFoundError, NotADirectoryError):
            if not stat.S_ISDIR(path.lstat().st_mode):
                path.unlink()
        self._prune(path.parent)

    def delete_prefix(self, prefix: str) -> int:
        if not prefix.endswith("/"):
            raise StoreError(f"a prefix to delete ends in '/': {prefix!r}")
        folder = self._path(prefix[:-1])
        count = sum(1 for _ in self.list(prefix))
        with _told("delete", prefix), suppress(FileNotFoundError, NotADirectoryError):
            # The whole folder, so that what a crashed write left half-done goes too.
            shutil.rmtree(folder)
        self._prune(folder.parent)
        return count

    def local_path(self, key: str) -> Path | None:
        return self._path(key.removesuffix("/"))

    def _path(self, key: str) -> Path:
        path = self._root / check_key(key)
        with _told("find", key):
            if path.resolve() != path:
                raise StoreError(f"object key {key!r} leads through a symbolic link")
        return path

    def _existing(self, key: str) -> Path:
        path = self._path(key)
        with _told("find", key):
            # Nothing but regular files: opening a pipe that someone left there would wait for ever.
            if not stat.S_ISREG(path.lstat().st_mode):
                raise ObjectNotFound(f"no object {key!r}")
        return path

    def _walk(self, folder: Path, base: str, prefix: str) -> Iterator[ObjectInfo]:
        """Objects below `folder`, whose key is `base`, by key; what is deleted meanwhile is left out."""
        with _told("list", prefix):
            try:
                entries = list(os.scandir(folder))
            except (FileNotFoundError, NotADirectoryError):
                return
            # A folder is placed by its name with the slash: `a-b` comes before `a/c`, as in S3.
            ordered = sorted(
                (f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name, entry)
                for entry in entries
                if is_key(entry.name)
            )
        for name, entry in ordered:
            key = f"{base}{name}"
            if name.endswith("/"):
                if key.startswith(prefix) or prefix.startswith(key):
                    yield from self._walk(Path(entry.path), key, prefix)
            elif key.startswith(prefix):
                with _told("list", prefix):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                if stat.S_ISREG(status.st_mode):
                    yield ObjectInfo(key=key, size=status.st_size)

    def _write(self, key: str, fill: Callable[[Path], None]) -> None:
        """Have `fill` make a new file, then move it to its place; a failure leaves what was there."""
        path = self._path(key)
        temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
        with _told("write", key, missing=StoreError):
            try:
                for attempt in range(_RACES):
                    try:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        fill(temporary)
                        temporary.replace(path)
                        break
                    except (FileNotFoundError, FileExistsError):
                        # A deletion may have pruned the folder at any moment since it was made, and another
                        # writer have made it again: that it is there now says nothing.
                        if attempt == _RACES - 1:
                            raise
                _sync_folder(path.parent)
            finally:
                # After a link it is still there: moving a file onto another name of itself does nothing.
                with suppress(FileNotFoundError, NotADirectoryError):
                    temporary.unlink()

    def _prune(self, folder: Path) -> None:
        """Remove folders that a deletion left empty, up to the root."""
        while folder != self._root and folder.is_relative_to(self._root):
            try:
                folder.rmdir()
            except OSError:  # not empty, or gone already
                return
            folder = folder.parent


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as sink:
        sink.write(data)
        _sync(sink)


def _link_synced(origin: Path, target: Path) -> None:
    with origin.open("rb") as source:
        os.fsync(source.fileno())
    link_or_copy(origin, target)


def _sync(sink: BinaryIO) -> None:
    sink.flush()
    os.fsync(sink.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlast a power cut, on systems that can open folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # removed meanwhile, or a system without it
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _told(verb: str, key: str, missing: type[StoreError] = ObjectNotFound) -> Generator[None]:
    """Turn the system's errors into the store's own exceptions."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        if missing is ObjectNotFound:
            raise ObjectNotFound(f"no object {key!r}") from error
        raise StoreError(f"cannot {verb} object {key!r}: {error}") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links, in `resolve`
        raise StoreError(f"cannot {verb} object {key!r}: {error}") from error
