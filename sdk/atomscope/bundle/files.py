"""The files of a bundle: found in a store, checked against the manifest, at hand as local files."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
import weakref
from pathlib import Path

from atomscope.bundle import layout
from atomscope.bundle.manifest import decode_manifest
from atomscope.errors import BundleError
from atomscope.store import ObjectNotFound, ObjectStore
from atomscope.types.bundle import FileEntry

_BLOCK = 1 << 20
_SHOWN = 5


class BundleFiles:
    """The files that a bundle's manifest lists; safe among threads.

    Every method raises `BundleError` when a file is missing or is not the one of the manifest, and
    `StoreError` when the store fails.
    """

    def __init__(self, store: ObjectStore, prefix: str, fetch_under: Path | None = None) -> None:
        self._store = store
        self._fetch_under = fetch_under
        self._prefix = prefix
        self._lock = threading.Lock()
        self._fetched: Path | None = None
        try:
            data = store.get_bytes(f"{prefix}{layout.MANIFEST}")
        except ObjectNotFound as error:
            raise BundleError(
                "no manifest.json: not an audit bundle, or one that is not committed yet"
            ) from error
        self.manifest = decode_manifest(data)
        self._entries: dict[str, FileEntry] = {entry.path: entry for entry in self.manifest.files}
        self._project = "/".join(prefix.split("/")[:2]) + "/" if prefix.startswith("projects/") else None

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def holds(self, path: str) -> bool:
        """Whether `path` is listed and in the store."""
        return path in self._entries and self._store.exists(self.key(path))

    def expired(self, path: str) -> bool:
        """Whether `path` is listed, lies where bundles share it, and is no longer there: no damage."""
        return path in (self.manifest.shared or {}) and not self.holds(path)

    def key(self, path: str) -> str:
        """The key of a file's content: in the bundle, or where several bundles of a project share it."""
        own = f"{self._prefix}{path}"
        shared = (self.manifest.shared or {}).get(path)
        if shared is None or self._project is None or not shared.startswith(self._project):
            return own
        return own if self._store.exists(own) else shared

    def path(self, path: str) -> Path:
        """A local file with the content of `path`, fetched and kept when the store is not a folder.

        Its size is checked; `checked` and `verify` check its content.
        """
        entry = self._entries.get(path)
        if entry is None:
            raise BundleError(f"the bundle does not hold {path}")
        key = self.key(path)
        local = self._store.local_path(key)
        try:
            if local is None:
                local = self._folder() / path
                if not local.exists():
                    self._store.get_file(key, local)
            if not local.is_file():
                raise FileNotFoundError(local)
            size = local.stat().st_size
        except (ObjectNotFound, FileNotFoundError, NotADirectoryError) as error:
            if path in (self.manifest.shared or {}):
                detail = "it has expired, or was left out of this copy"
                raise BundleError(f"{path} is no longer there: {detail}") from error
            raise BundleError(f"{path} is missing from the bundle") from error
        if size != entry.size:
            raise BundleError(f"{path} is damaged: {size} bytes where the manifest says {entry.size}")
        return local

    def read(self, path: str) -> bytes:
        """The content of a small file."""
        return self.path(path).read_bytes()

    def checked(self, path: str) -> Path:
        """As `path`, but every byte of the file was read and its SHA-256 compared too."""
        local = self.path(path)
        with local.open("rb") as source:
            if hashlib.file_digest(source, "sha256").hexdigest() != self._entries[path].sha256:
                raise BundleError(_other_content(path))
        return local

    def forget(self, path: str) -> None:
        """Remove the fetched copy of a large file that was read once; a store's own file is left alone."""
        if self._fetched is not None:
            (self._fetched / path).unlink(missing_ok=True)

    def verify(self) -> list[str]:
        """Read every file of the manifest, compare sizes and SHA-256, and look for files it does not list.

        Gives the paths of what is no longer there because it has expired, or was left out of a copy: what
        bundles share may be, without damage to them.
        """
        expired = [path for path in self.manifest.shared or {} if self.expired(path)]
        entries = [entry for entry in self.manifest.files if entry.path not in expired]
        faults = [fault for entry in entries if (fault := self._fault(entry)) is not None]
        for item in self._store.list(self._prefix):
            path = item.key.removeprefix(self._prefix)
            if path not in self._entries and path != layout.MANIFEST:
                faults.append(f"{path} is not listed in the manifest")
        if faults:
            more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
            raise BundleError(f"{'; '.join(faults[:_SHOWN])}{more}")
        return sorted(expired)

    def _fault(self, entry: FileEntry) -> str | None:
        digest, size = hashlib.sha256(), 0
        try:
            with self._store.open_read(self.key(entry.path)) as source:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    size += len(block)
        except ObjectNotFound:
            return f"{entry.path} is missing from the bundle"
        if size != entry.size:
            return f"{entry.path} is damaged: {size} bytes where the manifest says {entry.size}"
        if digest.hexdigest() != entry.sha256:
            return _other_content(entry.path)
        return None

    def _folder(self) -> Path:
        with self._lock:
            if self._fetched is None:
                self._fetched = Path(tempfile.mkdtemp(prefix="atomscope-bundle-", dir=self._fetch_under))
                # Removed with the last reference, or when the interpreter ends: a bundle needs no closing.
                weakref.finalize(self, shutil.rmtree, self._fetched, ignore_errors=True)
            return self._fetched


def _other_content(path: str) -> str:
    return f"{path} is damaged: its SHA-256 is not that of the manifest"
