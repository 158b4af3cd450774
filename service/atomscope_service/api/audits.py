"""`/v1/audits`: starting, following and ending audits."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
from litestar import Controller, Request, Response, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody

from atomscope.bundle.layout import audit_prefix
from atomscope.types.jobs import job_prefix
from atomscope.types.presets import with_preset
from atomscope.types.resources import (
    TERMINAL,
    Audit,
    AuditCreate,
    AuditError,
    AuditStatus,
    Deleted,
    Page,
    Progress,
    RefitCreate,
)
from atomscope.types.spec import AuditConfig
from atomscope_service.api.announce import announce
from atomscope_service.api.body import field_and_message
from atomscope_service.api.conditional import conditional
from atomscope_service.api.paging import DEFAULT_LIMIT, Cursor, Limit, list_rows
from atomscope_service.api.problems import ProblemError, invalid
from atomscope_service.api.services import CurrentTenant, Tenant, found, referenced
from atomscope_service.api.times import rfc3339, rfc3339_or_none
from atomscope_service.db import extractions
from atomscope_service.db.events import append_event
from atomscope_service.db.gradients import expires_at, gradients_of, let_go
from atomscope_service.db.models import AuditRow
from atomscope_service.db.repositories import Repositories
from atomscope_service.ids import new_id


def render_audit(tenant: Tenant, row: AuditRow, progress: Progress | None = None) -> Audit:
    """A row as the API shows it."""
    return Audit(
        id=row.id,
        name=row.name,
        status=row.status,  # pyright: ignore[reportArgumentType]  (checked when it was written)
        stage=row.stage,  # pyright: ignore[reportArgumentType]
        progress=progress,
        base_model=row.base_model_id,
        adapter=row.adapter_id,
        dataset=row.dataset_id,
        parent=row.parent_id,
        config=msgspec.convert(row.config, AuditConfig),
        metadata=row.metadata_,
        n_documents=row.n_documents,
        n_atoms=row.n_atoms,
        warnings=row.warnings,
        error=msgspec.convert(row.error, AuditError) if row.error is not None else None,
        created_at=rfc3339(row.created_at),
        started_at=rfc3339_or_none(row.started_at),
        ended_at=rfc3339_or_none(row.ended_at),
        gradients=gradients_of(row),
        gradients_expire_at=rfc3339_or_none(expires_at(row, tenant.services.settings.gradient_days)),
    )


@contextmanager
def settings_named() -> Generator[None]:
    """Turn what settings or a preset are refused for into a 400 that names the field."""
    try:
        yield
    except msgspec.ValidationError as error:
        field, message = field_and_message(str(error))
        raise invalid("config" if field == "body" else f"config.{field}", message) from error
    except ValueError as error:
        raise invalid("preset", str(error)) from error


def queue_audit(
    repositories: Repositories, row_of: AuditCreate | RefitCreate, config: AuditConfig, **inputs: str
) -> AuditRow:
    """Add the row of an audit or a refit that waits; `inputs` are the columns that name what it reads."""
    row = repositories.audits.add(
        AuditRow(
            id=new_id("aud"),
            project_id=repositories.audits.project_id,
            created_at=datetime.now(UTC),
            name=row_of.name,
            status="queued",
            attempt=1,
            config=msgspec.to_builtins(config),
            metadata_=row_of.metadata,
            warnings=[],
            event_sequence=0,
            **inputs,
        )
    )
    append_event(repositories.session, row, "audit.queued", {})
    return row


def create_audit(tenant: Tenant, request: AuditCreate) -> AuditRow:
    """Queue an audit of three inputs of the project.

    Raises 400 for an unknown preset or setting, 422 `not_found` or `model_not_ready`.
    """
    with settings_named():
        config = with_preset(request.preset, request.config)
    with tenant.write() as repositories:
        # Locked, so that none of them is deleted between this check and the commit.
        model = referenced(repositories.models, request.base_model, "model", "base_model", lock=True)
        referenced(repositories.adapters, request.adapter, "adapter", "adapter", lock=True)
        referenced(repositories.datasets, request.dataset, "dataset", "dataset", lock=True)
        if model.status != "ready":
            detail = f"Model {model.id} is {model.status}, not ready."
            raise ProblemError(422, "model_not_ready", detail, param="base_model")
        row = queue_audit(
            repositories,
            request,
            config,
            base_model_id=request.base_model,
            adapter_id=request.adapter,
            dataset_id=request.dataset,
        )
    announce(lambda: tenant.services.queue.audit_created(tenant.project_id, row.id))
    return row


def cancel_audit(tenant: Tenant, audit_id: str) -> tuple[AuditRow, Progress | None]:
    """Ask an audit to stop; raises 409 `audit_ended`. Asking twice is no error."""
    with tenant.write() as repositories:
        row = found(repositories.audits, audit_id, "audit", lock=True)
        if row.status in TERMINAL:
            raise ProblemError(409, "audit_ended", f"This audit has {row.status}.")
        if row.status != "canceling":
            row.status = "canceling"
            append_event(repositories.session, row, "audit.canceling", {})
        progress = repositories.audits.progress(row)
    announce(lambda: tenant.services.queue.cancel_requested(tenant.project_id, audit_id))
    return row, progress


def delete_audit(tenant: Tenant, audit_id: str) -> None:
    """Delete an ended audit, its bundle, work files, events and units, and what only it uses of extractions.

    Raises 409 `audit_not_ended`, and `resource_in_use` while a refit reads it.
    """
    with tenant.write() as repositories:
        row = found(repositories.audits, audit_id, "audit", lock=True)
        if row.status not in TERMINAL:
            detail = f"This audit is {row.status}: cancel it and wait for its end first."
            raise ProblemError(409, "audit_not_ended", detail)
        refit = repositories.audits.live_refit_of(audit_id)
        if refit is not None:
            detail = f"Refit {refit} has not ended and reads it."
            raise ProblemError(409, "resource_in_use", detail)
        extractions.release(repositories.session, tenant.project_id, audit_id)
        repositories.deletions.add_prefix(audit_prefix(tenant.project_id, audit_id))
        for job_id in repositories.jobs.live_of(audit_id):
            # Its worker may still write after the audit's own prefix has been removed.
            repositories.deletions.add_prefix(job_prefix(tenant.project_id, audit_id, job_id))
        repositories.audits.remove(row)
    tenant.services.bundles.forget(audit_prefix(tenant.project_id, audit_id))
    announce(tenant.services.queue.deletions_added)


def delete_gradients(tenant: Tenant, audit_id: str) -> AuditRow:
    """Let an ended audit go of its gradients now; twice is no error.

    Raises 409 `audit_not_ended`, and `resource_in_use` while an attribution may read them.
    """
    with tenant.write() as repositories:
        row = found(repositories.audits, audit_id, "audit", lock=True)
        if row.status not in TERMINAL:
            raise ProblemError(409, "audit_not_ended", f"This audit is {row.status}: its end comes first.")
        asked = repositories.jobs.live_of(audit_id, kind="attribution")
        if asked and gradients_of(row) == "kept":
            raise ProblemError(409, "resource_in_use", f"{asked[0]} has not ended and may read them.")
        let_go(repositories.session, row, datetime.now(UTC))
    announce(tenant.services.queue.deletions_added)
    return row


def require_gradients(row: AuditRow, what: str, *, sketch: bool = False) -> None:
    """Raise 409 `gradients_not_kept` or `gradients_expired` unless the audit has its gradients.

    With `sketch`, one of them will do.
    """
    kept = gradients_of(row)
    if kept == "none" or (kept == "sketch" and not sketch):
        detail = f"{what} reads gradients, and this audit was made with `gradients: {kept}`: it kept none."
        raise ProblemError(409, "gradients_not_kept", detail)
    if kept == "expired":
        detail = f"{what} reads gradients, and this audit's have expired: run a whole audit."
        raise ProblemError(409, "gradients_expired", detail)


class AuditController(Controller):
    path = "/v1/audits"
    tags = ["audits"]  # noqa: RUF012

    @post(operation_id="createAudit", status_code=202, sync_to_thread=True)
    def create(self, tenant: CurrentTenant, data: JSONBody[AuditCreate]) -> Response[Audit]:
        """Start an audit of a base model, an adapter and a data set."""
        row = create_audit(tenant, data)
        return Response(render_audit(tenant, row), headers={"Location": f"/v1/audits/{row.id}"})

    @get(operation_id="listAudits", sync_to_thread=True)
    def list_page(
        self,
        tenant: CurrentTenant,
        status: FromQuery[AuditStatus | None] = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Page[Audit]:
        """Audits, newest first, without their progress."""
        equal = {} if status is None else {"status": status}
        return list_rows(
            tenant,
            lambda rows: rows.audits,
            lambda row: render_audit(tenant, row),
            limit=limit,
            cursor=cursor,
            **equal,
        )

    @get("/{audit_id:str}", operation_id="getAudit", sync_to_thread=True)
    def read(
        self, request: Request[Any, Any, Any], tenant: CurrentTenant, audit_id: FromPath[str]
    ) -> Response[Audit]:
        """One audit, with the progress of its stage."""
        with tenant.read() as repositories:
            row = found(repositories.audits, audit_id, "audit")
            progress = repositories.audits.progress(row)
        return conditional(request, render_audit(tenant, row, progress))

    @post("/{audit_id:str}/cancel", operation_id="cancelAudit", status_code=202, sync_to_thread=True)
    def cancel(self, tenant: CurrentTenant, audit_id: FromPath[str]) -> Audit:
        """Ask an audit to stop; it ends as `canceled` within a batch or so."""
        return render_audit(tenant, *cancel_audit(tenant, audit_id))

    @delete("/{audit_id:str}/gradients", operation_id="deleteGradients", status_code=200, sync_to_thread=True)
    def remove_gradients(self, tenant: CurrentTenant, audit_id: FromPath[str]) -> Audit:
        """Let an ended audit go of its gradients; its atoms, vectors and report stay."""
        return render_audit(tenant, delete_gradients(tenant, audit_id))

    @delete("/{audit_id:str}", operation_id="deleteAudit", status_code=200, sync_to_thread=True)
    def remove(self, tenant: CurrentTenant, audit_id: FromPath[str]) -> Deleted:
        """Delete an ended audit and its bundle."""
        delete_audit(tenant, audit_id)
        return Deleted(id=audit_id)
