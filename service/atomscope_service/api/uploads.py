"""`/v1/uploads`: files on their way in."""

from __future__ import annotations

from typing import Annotated, Any

import anyio.to_thread
from litestar import Controller, Request, Response, delete, get, post, put
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from atomscope.types.inputs import Upload, UploadComplete, UploadCreate, UploadFile, UploadPart
from atomscope.types.resources import Deleted, Page
from atomscope_service.api.conditional import conditional
from atomscope_service.api.paging import DEFAULT_LIMIT, Cursor, Limit, list_rows
from atomscope_service.api.problems import not_found
from atomscope_service.api.services import CurrentServices, CurrentTenant, Services, found
from atomscope_service.api.times import rfc3339
from atomscope_service.auth.middleware import PUBLIC
from atomscope_service.db.models import UploadRow
from atomscope_service.db.repositories import Repositories
from atomscope_service.uploads.links import PartLink
from atomscope_service.uploads.receive import receive_part
from atomscope_service.uploads.record import StoredFile, open_upload
from atomscope_service.uploads.service import (
    complete_upload,
    create_upload,
    delete_upload,
    require_pending,
    transfer_of,
)
from atomscope_service.uploads.transfer import LocalTransfer, local_file, part_key


def render_upload(services: Services, row: UploadRow, *, with_parts: bool) -> Upload:
    """A row as the API shows it; part URLs only while parts may still be sent."""
    upload = open_upload(row)
    transfer = transfer_of(services)
    files: list[UploadFile] = []
    for number, file in enumerate(upload.files):
        parts = [
            UploadPart(
                number=part,
                offset=(part - 1) * file.part_bytes,
                size=file.part_size(part),
                url=transfer.part_url(upload, number, file, part),
            )
            for part in (range(1, file.part_count + 1) if with_parts and row.status == "pending" else ())
        ]
        files.append(UploadFile(path=file.path, size=file.size, sha256=file.sha256, parts=parts))
    return Upload(
        id=row.id,
        purpose=row.purpose,  # pyright: ignore[reportArgumentType]  (checked when it was written)
        status=row.status,  # pyright: ignore[reportArgumentType]
        files=files,
        created_at=rfc3339(row.created_at),
        expires_at=rfc3339(row.expires_at),
    )


class UploadController(Controller):
    path = "/v1/uploads"
    tags = ["uploads"]  # noqa: RUF012

    @post(operation_id="createUpload", sync_to_thread=True)
    def create(self, tenant: CurrentTenant, data: JSONBody[UploadCreate]) -> Response[Upload]:
        """Open an upload: `PUT` each part to its URL, then complete it."""
        row = create_upload(tenant, data)
        upload = render_upload(tenant.services, row, with_parts=True)
        return Response(upload, headers={"Location": f"/v1/uploads/{row.id}"})

    @get(operation_id="listUploads", sync_to_thread=True)
    def list_page(
        self, tenant: CurrentTenant, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
    ) -> Page[Upload]:
        """Uploads, newest first, without part URLs."""
        return list_rows(
            tenant,
            lambda repositories: repositories.uploads,
            lambda row: render_upload(tenant.services, row, with_parts=False),
            limit=limit,
            cursor=cursor,
        )

    @get("/{upload_id:str}", operation_id="getUpload", sync_to_thread=True)
    def read(
        self, request: Request[Any, Any, Any], tenant: CurrentTenant, upload_id: FromPath[str]
    ) -> Response[Upload]:
        """One upload, with part URLs while it is pending."""
        with tenant.read() as repositories:
            row = found(repositories.uploads, upload_id, "upload")
        return conditional(request, render_upload(tenant.services, row, with_parts=True))

    @post("/{upload_id:str}/complete", operation_id="completeUpload", status_code=200, sync_to_thread=True)
    def complete(
        self, tenant: CurrentTenant, upload_id: FromPath[str], data: JSONBody[UploadComplete]
    ) -> Upload:
        """Join the parts; sizes and SHA-256 digests are checked."""
        row = complete_upload(tenant, upload_id, data.files)
        return render_upload(tenant.services, row, with_parts=False)

    @delete("/{upload_id:str}", operation_id="deleteUpload", status_code=200, sync_to_thread=True)
    def remove(self, tenant: CurrentTenant, upload_id: FromPath[str]) -> Deleted:
        """Drop an upload and what was sent."""
        delete_upload(tenant, upload_id)
        return Deleted(id=upload_id)

    @put(
        "/{upload_id:str}/files/{file:int}/parts/{part:int}",
        operation_id="putUploadPart",
        opt={PUBLIC: True},
        request_max_body_size=None,
        status_code=200,
        security=[],
    )
    async def put_part(
        self,
        *,
        request: Request[Any, Any, Any],
        services: CurrentServices,
        upload_id: FromPath[str],
        file: FromPath[int],
        part: FromPath[int],
        project: FromQuery[str],
        size: FromQuery[int],
        expires: FromQuery[int],
        signature: Annotated[str, QueryParameter(max_length=100)],
    ) -> Response[bytes]:
        """Bytes of one part, on a local store. The URL is signed and needs no key."""
        link = PartLink(
            project_id=project, upload_id=upload_id, file=file, part=part, size=size, expires=expires
        )
        link.check(services.secret.derive("links"), signature)
        stored = await anyio.to_thread.run_sync(_pending_file, services, link)
        path = local_file(services.store, part_key(stored, part))
        etag = await receive_part(request.stream(), path, stored.part_size(part))
        return Response(b"", media_type="application/octet-stream", headers={"ETag": etag})


def _pending_file(services: Services, link: PartLink) -> StoredFile:
    """The file that a checked link is for; the upload may have been deleted or completed since."""
    if not isinstance(transfer_of(services), LocalTransfer):
        raise not_found("part")
    with services.database.read() as session:
        row = found(Repositories(session, link.project_id).uploads, link.upload_id, "upload")
    require_pending(row)
    return open_upload(row).files[link.file]
