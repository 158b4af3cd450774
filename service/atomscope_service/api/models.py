"""`/v1/models`: base models, uploaded, registered by the operator, or brought from a hub."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from litestar import Controller, Request, Response, delete, get, post
from litestar.params import FromPath, JSONBody

from atomscope.types.inputs import Model, ModelCreate
from atomscope.types.resources import Deleted, Page
from atomscope_service.api.announce import announce
from atomscope_service.api.conditional import conditional
from atomscope_service.api.inputs import require_unused
from atomscope_service.api.paging import DEFAULT_LIMIT, Cursor, Limit, list_rows
from atomscope_service.api.problems import ProblemError, invalid
from atomscope_service.api.services import CurrentTenant, Tenant, found
from atomscope_service.api.times import rfc3339
from atomscope_service.db.models import ModelRow
from atomscope_service.ids import new_id
from atomscope_service.uploads.inspect import inspect_model
from atomscope_service.uploads.service import completed_upload, digest_of, size_of, using_up


def render_model(row: ModelRow) -> Model:
    """A row as the API shows it."""
    return Model(
        id=row.id,
        name=row.name,
        source=row.source,  # pyright: ignore[reportArgumentType]  (checked when it was written)
        status=row.status,  # pyright: ignore[reportArgumentType]
        sha256=row.sha256,
        size=row.size,
        architecture=row.architecture,
        hub_id=row.hub_id,
        revision=row.revision,
        error=row.error,
        created_at=rfc3339(row.created_at),
    )


def model_prefix(project_id: str, model_id: str) -> str:
    """Key prefix of a model's files."""
    return f"projects/{project_id}/models/{model_id}/"


def create_from_upload(tenant: Tenant, name: str, upload_id: str) -> ModelRow:
    """Make a model of a completed upload, after header checks."""
    upload = completed_upload(tenant, upload_id, "model")
    sources = {file.path: file for file in upload.files}
    architecture = inspect_model(
        lambda file: tenant.services.store.open_read(sources[file].key),
        {file.path: file.size for file in upload.files},
    )
    model_id = new_id("mdl")
    prefix = model_prefix(tenant.project_id, model_id)
    with using_up(tenant, upload, lambda file: f"{prefix}{file}") as (repositories, files):
        row = ModelRow(
            id=model_id,
            project_id=tenant.project_id,
            created_at=datetime.now(UTC),
            name=name,
            source="uploaded",
            status="ready",
            prefix=prefix,
            sha256=digest_of(files),
            size=size_of(files),
            architecture=architecture,
        )
        return repositories.models.add(row)


def create_from_hub(tenant: Tenant, name: str, hub_id: str, revision: str) -> ModelRow:
    """Record a model that control will bring from the hub."""
    model_id = new_id("mdl")
    row = ModelRow(
        id=model_id,
        project_id=tenant.project_id,
        created_at=datetime.now(UTC),
        name=name,
        source="hub",
        status="importing",
        prefix=model_prefix(tenant.project_id, model_id),
        size=0,
        hub_id=hub_id,
        revision=revision,
    )
    with tenant.write() as repositories:
        repositories.models.add(row)
    announce(lambda: tenant.services.queue.hub_import_requested(tenant.project_id, model_id))
    return row


class ModelController(Controller):
    path = "/v1/models"
    tags = ["models"]  # noqa: RUF012

    @post(operation_id="createModel", sync_to_thread=True)
    def create(self, tenant: CurrentTenant, data: JSONBody[ModelCreate]) -> Response[Model]:
        """Make a model of a completed upload (201), or start an import from a hub (202)."""
        if (data.upload_id is None) == (data.hub_id is None):
            raise invalid("upload_id", "give either `upload_id` or `hub_id`")
        if (data.hub_id is None) != (data.revision is None):
            raise invalid("revision", "a model of a hub is named by `hub_id` and `revision` together")
        if data.upload_id is not None:
            row, status = create_from_upload(tenant, data.name, data.upload_id), 201
        else:
            if not tenant.services.settings.hub_import:
                raise ProblemError(
                    403, "hub_import_disabled", "The operator does not allow imports from a hub."
                )
            row, status = create_from_hub(tenant, data.name, data.hub_id or "", data.revision or ""), 202
        headers = {"Location": f"/v1/models/{row.id}"}
        return Response(render_model(row), status_code=status, headers=headers)

    @get(operation_id="listModels", sync_to_thread=True)
    def list_page(
        self, tenant: CurrentTenant, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
    ) -> Page[Model]:
        """Base models, newest first."""
        return list_rows(tenant, lambda rows: rows.models, render_model, limit=limit, cursor=cursor)

    @get("/{model_id:str}", operation_id="getModel", sync_to_thread=True)
    def read(
        self, request: Request[Any, Any, Any], tenant: CurrentTenant, model_id: FromPath[str]
    ) -> Response[Model]:
        """One base model."""
        with tenant.read() as repositories:
            row = found(repositories.models, model_id, "model")
        return conditional(request, render_model(row))

    @delete("/{model_id:str}", operation_id="deleteModel", status_code=200, sync_to_thread=True)
    def remove(self, tenant: CurrentTenant, model_id: FromPath[str]) -> Deleted:
        """Delete a base model and its files; 409 while a live audit uses it."""
        with tenant.write() as repositories:
            row = found(repositories.models, model_id, "model", lock=True)
            require_unused(repositories, model_id)
            repositories.deletions.add_prefix(row.prefix)
            repositories.models.remove(row)
        announce(tenant.services.queue.deletions_added)
        return Deleted(id=model_id)
