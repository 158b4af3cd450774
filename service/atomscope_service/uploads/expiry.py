"""Closing uploads whose time is over, across all projects: run by control's sweep."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select

from atomscope.store import ObjectStore
from atomscope.store._s3 import S3Store
from atomscope_service.db.engine import Database
from atomscope_service.db.models import UploadRow
from atomscope_service.db.repositories import Repositories
from atomscope_service.uploads.record import OpenUpload, open_upload, upload_prefix

BATCH = 100


def expire_uploads(database: Database, store: ObjectStore) -> int:
    """Close uploads that were neither completed nor used up in time; how many.

    Their objects are put down for deletion. Raises `StoreError` when the store cannot drop a multipart
    upload; the row is closed first, so that nothing can use it any more, and deleting what S3 keeps of a
    multipart upload that was not dropped is left to the bucket's own lifecycle rule.
    """
    query = select(UploadRow.id, UploadRow.project_id).where(
        UploadRow.status != "expired", UploadRow.expires_at < datetime.now(UTC)
    )
    with database.read() as session:
        overdue = session.execute(query.order_by(UploadRow.id).limit(BATCH)).all()
    closed = 0
    for upload_id, project_id in overdue:
        upload = _close(database, project_id, upload_id)
        if upload is not None:
            closed += 1
            _drop_parts(store, upload)
    return closed


def _close(database: Database, project_id: str, upload_id: str) -> OpenUpload | None:
    """Close one upload, unless it was used up or deleted meanwhile."""
    with database.write() as session:
        repositories = Repositories(session, project_id)
        row = repositories.uploads.get(upload_id, lock=True)
        if row is None or row.status == "expired":
            return None
        row.status = "expired"
        repositories.deletions.add_prefix(upload_prefix(project_id, upload_id))
        return open_upload(row)


def _drop_parts(store: ObjectStore, upload: OpenUpload) -> None:
    if isinstance(store, S3Store):
        for file in upload.files:
            if file.multipart is not None:
                store.abort_multipart(file.key, file.multipart)
