"""How bytes get into the store and out of it: signed links to us (local folder) or to the store (S3)."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from pathlib import Path
from typing import Any, Protocol

from atomscope.store import ObjectNotFound, ObjectStore, StoreError
from atomscope.store._s3 import S3Store
from atomscope_service.api.problems import ProblemError
from atomscope_service.auth.secret import Secret
from atomscope_service.settings import Settings
from atomscope_service.uploads.links import FileLink, PartLink
from atomscope_service.uploads.record import OpenUpload, StoredFile

CHUNK = 1 << 20


class Transfer(Protocol):
    """What uploads and downloads need of a store."""

    def begin(self, key: str) -> str | None:
        """Prepare an object that will come in parts; the store's own id of it."""
        ...

    def part_url(self, upload: OpenUpload, number: int, file: StoredFile, part: int) -> str:
        """Where to `PUT` part `part` (from 1) of file `number` (from 0)."""
        ...

    def finish(self, upload: OpenUpload, number: int, file: StoredFile, parts: list[tuple[int, str]]) -> None:
        """Join the parts, given as (number, ETag); 422 `parts_missing` when one is not there."""
        ...

    def drop(self, file: StoredFile) -> None:
        """Forget what was sent of a file that will not be finished."""
        ...

    def download_url(self, key: str) -> str:
        """A short-lived link to an object."""
        ...


def make_transfer(settings: Settings, store: ObjectStore, secret: Secret) -> Transfer:
    """The transfer of this store."""
    if isinstance(store, S3Store):
        return S3Transfer(store, settings)
    return LocalTransfer(store, settings, secret)


def part_key(file: StoredFile, part: int) -> str:
    """Key of a part in a local store, beside the object that it will be joined into."""
    folder, _, number = file.key.rpartition("/")
    return f"{folder}/parts/{number}/{part}"


class LocalTransfer:
    """Parts are files beside the object; links lead to this service."""

    def __init__(self, store: ObjectStore, settings: Settings, secret: Secret) -> None:
        self._store = store
        self._settings = settings
        self._key = secret.derive("links")

    def begin(self, key: str) -> str | None:
        return None

    def part_url(self, upload: OpenUpload, number: int, file: StoredFile, part: int) -> str:
        link = PartLink(
            project_id=upload.project_id,
            upload_id=upload.id,
            file=number,
            part=part,
            size=file.part_size(part),
            expires=int(upload.expires_at.timestamp()),
        )
        return link.url(self._settings.base_url, self._key)

    def finish(self, upload: OpenUpload, number: int, file: StoredFile, parts: list[tuple[int, str]]) -> None:
        target = local_file(self._store, file.key)
        try:
            self._join(file, [part for part, _ in parts], target)
        except FileNotFoundError:
            # Another request joined them in the meantime, or before and ended before it could say so.
            if not target.is_file():
                raise _missing(file) from None

    def _join(self, file: StoredFile, parts: list[int], target: Path) -> None:
        sources = [local_file(self._store, part_key(file, part)) for part in parts]
        for part, source in zip(parts, sources, strict=True):
            if source.stat().st_size != file.part_size(part):
                raise _missing(file)
        if len(sources) == 1:
            sources[0].replace(target)
        else:
            _concatenate(sources, target)
        self._store.delete_prefix(f"{part_key(file, 0).rpartition('/')[0]}/")

    def drop(self, file: StoredFile) -> None:
        """The upload's prefix is deleted as a whole."""

    def download_url(self, key: str) -> str:
        link = FileLink(key=key, expires=int(time.time() + self._settings.link_seconds))
        return link.url(self._settings.base_url, self._key)


class S3Transfer:
    """Multipart uploads; links lead to the store."""

    def __init__(self, store: S3Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings

    def begin(self, key: str) -> str | None:
        return self._store.create_multipart(key)

    def part_url(self, upload: OpenUpload, number: int, file: StoredFile, part: int) -> str:
        seconds = max(1, int(upload.expires_at.timestamp() - time.time()))
        return self._store.presign_part(file.key, file.multipart or "", part, seconds)

    def finish(self, upload: OpenUpload, number: int, file: StoredFile, parts: list[tuple[int, str]]) -> None:
        try:
            self._store.complete_multipart(file.key, file.multipart or "", parts)
        except ObjectNotFound:
            # The multipart upload is gone: it was completed by a request that ended before it could say so.
            if not self._store.exists(file.key):
                raise _missing(file) from None
        except StoreError as error:
            if _s3_code(error) in {"InvalidPart", "InvalidPartOrder", "EntityTooSmall"}:
                raise _missing(file) from error
            raise

    def drop(self, file: StoredFile) -> None:
        if file.multipart is not None:
            self._store.abort_multipart(file.key, file.multipart)

    def download_url(self, key: str) -> str:
        return self._store.presign_get(key, int(self._settings.link_seconds))


def _s3_code(error: StoreError) -> str | None:
    """The store's own error code behind a `StoreError`."""
    response: dict[str, Any] = getattr(error.__cause__, "response", None) or {}
    return response.get("Error", {}).get("Code")


def verify(store: ObjectStore, file: StoredFile) -> None:
    """Read a finished object and compare it with what was announced; constant memory.

    Raises 422 `size_mismatch` or `checksum_mismatch`.
    """
    size = store.size(file.key)
    if size != file.size:
        detail = f"{file.path} holds {size} bytes; {file.size} were announced."
        raise ProblemError(422, "size_mismatch", detail, param="files")
    digest = hashlib.sha256()
    with store.open_read(file.key) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != file.sha256:
        detail = f"The SHA-256 of {file.path} is {digest.hexdigest()}; another was announced."
        raise ProblemError(422, "checksum_mismatch", detail, param="files")


def local_file(store: ObjectStore, key: str) -> Path:
    """The file behind a key; raises `StoreError` on a store that is not a local folder."""
    path = store.local_path(key)
    if path is None:
        raise StoreError("this store is not a local folder")
    return path


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that the store's listings leave out."""
    return path.with_name(f".tmp-{uuid.uuid4().hex}")


def _concatenate(sources: list[Path], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    try:
        with temporary.open("xb") as sink:
            for source in sources:
                with source.open("rb") as stream:
                    while chunk := stream.read(CHUNK):
                        sink.write(chunk)
            sink.flush()
            os.fsync(sink.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _missing(file: StoredFile) -> ProblemError:
    detail = f"Not every part of {file.path} was received as it was acknowledged."
    return ProblemError(422, "parts_missing", detail, param="files")
