"""The life of an upload: opened, completed, used up by the resource made of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import msgspec

from atomscope.input_files import folder_digest
from atomscope.types.inputs import CompletedFile, UploadCreate, UploadPurpose
from atomscope_service.api.announce import announce
from atomscope_service.api.problems import ProblemError, not_found, unknown_reference
from atomscope_service.api.services import Services, Tenant, found
from atomscope_service.db.models import UploadRow
from atomscope_service.db.repositories import Repositories
from atomscope_service.ids import new_id
from atomscope_service.uploads.record import (
    OpenUpload,
    StoredFile,
    open_upload,
    part_bytes_for,
    upload_prefix,
)
from atomscope_service.uploads.rules import check_files, kept_files
from atomscope_service.uploads.transfer import Transfer, make_transfer, verify


def transfer_of(services: Services) -> Transfer:
    """The transfer of the service's store."""
    return make_transfer(services.settings, services.store, services.secret)


def create_upload(tenant: Tenant, request: UploadCreate) -> UploadRow:
    """Open an upload after every check that needs only the list of files."""
    settings = tenant.services.settings
    check_files(settings, request.purpose, request.files)
    transfer = transfer_of(tenant.services)
    upload_id = new_id("upl")
    now = datetime.now(UTC)
    files: list[StoredFile] = []
    for number, spec in enumerate(request.files):
        key = f"{upload_prefix(tenant.project_id, upload_id)}{number}"
        files.append(
            StoredFile(
                path=spec.path,
                size=spec.size,
                sha256=spec.sha256,
                key=key,
                multipart=transfer.begin(key),
                part_bytes=part_bytes_for(spec.size, settings.part_bytes),
            )
        )
    row = UploadRow(
        id=upload_id,
        project_id=tenant.project_id,
        created_at=now,
        purpose=request.purpose,
        status="pending",
        files=msgspec.to_builtins(files),
        expires_at=now + timedelta(seconds=settings.upload_seconds),
    )
    with tenant.write() as repositories:
        return repositories.uploads.add(row)


def complete_upload(tenant: Tenant, upload_id: str, completed: list[CompletedFile]) -> UploadRow:
    """Join every file's parts and check sizes and digests; completing twice is no error.

    An upload whose content is not what was announced is closed: nobody can tell which part is wrong.
    """
    with tenant.read() as repositories:
        row = found(repositories.uploads, upload_id, "upload")
    if row.status == "completed":
        return row
    require_pending(row)
    upload = open_upload(row)
    parts = _parts_of(upload, completed)
    transfer = transfer_of(tenant.services)
    for number, file in enumerate(upload.files):
        transfer.finish(upload, number, file, parts[file.path])
    try:
        for file in upload.files:
            verify(tenant.services.store, file)
    except ProblemError:
        _close(tenant, upload_id)
        raise
    with tenant.write() as repositories:
        row = found(repositories.uploads, upload_id, "upload", lock=True)
        row.status = "completed"
        return row


def require_pending(row: UploadRow) -> None:
    """Raise 409 unless parts may still be sent."""
    if row.status == "completed":
        raise ProblemError(409, "upload_completed", "This upload is complete: no more parts are taken.")
    if row.status != "pending" or row.expires_at <= datetime.now(UTC):
        raise ProblemError(409, "upload_expired", "This upload is closed: start another one.")


def delete_upload(tenant: Tenant, upload_id: str) -> None:
    """Remove an upload and everything that was sent."""
    with tenant.write() as repositories:
        row = found(repositories.uploads, upload_id, "upload", lock=True)
        upload, pending = open_upload(row), row.status == "pending"
        repositories.uploads.remove(row)
        repositories.deletions.add_prefix(upload_prefix(tenant.project_id, upload_id))
    if pending:
        transfer = transfer_of(tenant.services)
        for file in upload.files:
            transfer.drop(file)
    announce(tenant.services.queue.deletions_added)


def completed_upload(tenant: Tenant, upload_id: str, purpose: UploadPurpose) -> OpenUpload:
    """The upload that a new resource is made of; raises 422 with `param` `upload_id`."""
    with tenant.read() as repositories:
        row = repositories.uploads.get(upload_id)
    if row is None:
        raise unknown_reference("upload_id", "upload")
    if row.purpose != purpose:
        detail = f"This upload is for purpose {row.purpose!r}, not {purpose!r}."
        raise ProblemError(422, "wrong_purpose", detail, param="upload_id")
    if row.status != "completed":
        raise ProblemError(422, "upload_not_completed", "Complete this upload first.", param="upload_id")
    return open_upload(row)


@contextmanager
def using_up(
    tenant: Tenant, upload: OpenUpload, place: Callable[[str], str]
) -> Generator[tuple[Repositories, Mapping[str, StoredFile]]]:
    """Copy an upload's files to the keys that `place` gives their names, and add a resource in the block.

    The block runs in the transaction that removes the upload. Of two requests that use one upload
    together, one gets it and the other is told 422 and its copies are removed again.
    """
    files = {file.path: file for file in upload.files}
    kept = {name: files[name] for name in kept_files(list(files))}
    store = tenant.services.store
    try:
        for name, file in kept.items():
            store.copy(file.key, place(name))
        with tenant.write() as repositories:
            row = repositories.uploads.get(upload.id, lock=True)
            if row is None or row.status != "completed" or not repositories.uploads.remove(row):
                raise unknown_reference("upload_id", "upload")
            repositories.deletions.add_prefix(upload_prefix(tenant.project_id, upload.id))
            yield repositories, kept
    except BaseException:
        for name in kept:
            store.delete(place(name))
        raise
    announce(tenant.services.queue.deletions_added)


def digest_of(files: Mapping[str, StoredFile]) -> str:
    """Digest of the files as a folder."""
    return folder_digest({name: file.sha256 for name, file in files.items()})


def size_of(files: Mapping[str, StoredFile]) -> int:
    """Bytes of the files together."""
    return sum(file.size for file in files.values())


def _parts_of(upload: OpenUpload, completed: list[CompletedFile]) -> dict[str, list[tuple[int, str]]]:
    given = {file.path: file.parts for file in completed}
    if len(given) != len(completed) or set(given) != {file.path for file in upload.files}:
        raise ProblemError(422, "files_differ", "Name every file of the upload once.", param="files")
    parts: dict[str, list[tuple[int, str]]] = {}
    for file in upload.files:
        listed = sorted((part.number, part.etag) for part in given[file.path])
        if [number for number, _ in listed] != list(range(1, file.part_count + 1)):
            detail = f"{file.path} has parts 1 to {file.part_count}: name each once."
            raise ProblemError(422, "parts_missing", detail, param="files")
        parts[file.path] = listed
    return parts


def _close(tenant: Tenant, upload_id: str) -> None:
    with tenant.write() as repositories:
        row = repositories.uploads.get(upload_id, lock=True)
        if row is None:
            raise not_found("upload")
        row.status = "expired"
        repositories.deletions.add_prefix(upload_prefix(tenant.project_id, upload_id))
    announce(tenant.services.queue.deletions_added)
