"""`/v1/adapters`: LoRA adapters."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from litestar import Controller, Request, Response, delete, get, post
from litestar.params import FromPath, JSONBody

from atomscope.types.inputs import Adapter, AdapterCreate
from atomscope.types.resources import Deleted, Page
from atomscope_service.api.announce import announce
from atomscope_service.api.conditional import conditional
from atomscope_service.api.inputs import require_unused
from atomscope_service.api.paging import DEFAULT_LIMIT, Cursor, Limit, list_rows
from atomscope_service.api.services import CurrentTenant, Tenant, found
from atomscope_service.api.times import rfc3339
from atomscope_service.db.models import AdapterRow
from atomscope_service.ids import new_id
from atomscope_service.uploads.inspect import inspect_adapter
from atomscope_service.uploads.service import completed_upload, digest_of, size_of, using_up


def render_adapter(row: AdapterRow) -> Adapter:
    """A row as the API shows it."""
    return Adapter(
        id=row.id,
        name=row.name,
        sha256=row.sha256,
        size=row.size,
        rank=row.rank,
        target_modules=row.target_modules,
        base_model_name=row.base_model_name,
        created_at=rfc3339(row.created_at),
    )


def create_adapter(tenant: Tenant, request: AdapterCreate) -> AdapterRow:
    """Make an adapter of a completed upload, after header checks."""
    upload = completed_upload(tenant, request.upload_id, "adapter")
    sources = {file.path: file for file in upload.files}
    facts = inspect_adapter(
        lambda name: tenant.services.store.open_read(sources[name].key),
        {name: file.size for name, file in sources.items()},
    )
    adapter_id = new_id("ada")
    prefix = f"projects/{tenant.project_id}/adapters/{adapter_id}/"
    with using_up(tenant, upload, lambda name: f"{prefix}{name}") as (repositories, files):
        row = AdapterRow(
            id=adapter_id,
            project_id=tenant.project_id,
            created_at=datetime.now(UTC),
            name=request.name,
            prefix=prefix,
            sha256=digest_of(files),
            size=size_of(files),
            rank=facts.rank,
            target_modules=facts.target_modules,
            base_model_name=facts.base_model_name,
        )
        return repositories.adapters.add(row)


class AdapterController(Controller):
    path = "/v1/adapters"
    tags = ["adapters"]  # noqa: RUF012

    @post(operation_id="createAdapter", sync_to_thread=True)
    def create(self, tenant: CurrentTenant, data: JSONBody[AdapterCreate]) -> Response[Adapter]:
        """Make an adapter of a completed upload, which is used up."""
        row = create_adapter(tenant, data)
        return Response(render_adapter(row), headers={"Location": f"/v1/adapters/{row.id}"})

    @get(operation_id="listAdapters", sync_to_thread=True)
    def list_page(
        self, tenant: CurrentTenant, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
    ) -> Page[Adapter]:
        """Adapters, newest first."""
        return list_rows(tenant, lambda rows: rows.adapters, render_adapter, limit=limit, cursor=cursor)

    @get("/{adapter_id:str}", operation_id="getAdapter", sync_to_thread=True)
    def read(
        self, request: Request[Any, Any, Any], tenant: CurrentTenant, adapter_id: FromPath[str]
    ) -> Response[Adapter]:
        """One adapter."""
        with tenant.read() as repositories:
            row = found(repositories.adapters, adapter_id, "adapter")
        return conditional(request, render_adapter(row))

    @delete("/{adapter_id:str}", operation_id="deleteAdapter", status_code=200, sync_to_thread=True)
    def remove(self, tenant: CurrentTenant, adapter_id: FromPath[str]) -> Deleted:
        """Delete an adapter and its files; 409 while a live audit uses it."""
        with tenant.write() as repositories:
            row = found(repositories.adapters, adapter_id, "adapter", lock=True)
            require_unused(repositories, adapter_id)
            repositories.deletions.add_prefix(row.prefix)
            repositories.adapters.remove(row)
        announce(tenant.services.queue.deletions_added)
        return Deleted(id=adapter_id)
