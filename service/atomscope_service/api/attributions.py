"""`/v1/audits/{id}/attributions`: from a prompt and its completion to what an audit found."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from litestar import Controller, Request, Response, delete, get, post
from litestar.params import FromPath, JSONBody

from atomscope.store import ObjectStore
from atomscope.types.attribution import AttributionQuery
from atomscope.types.jobs import job_prefix
from atomscope.types.resources import Attribution, AttributionCreate, AuditError, Deleted, Page, Progress
from atomscope_service.api.announce import announce
from atomscope_service.api.conditional import conditional
from atomscope_service.api.paging import DEFAULT_LIMIT, Cursor, Limit, list_rows
from atomscope_service.api.problems import ProblemError, not_found
from atomscope_service.api.services import CurrentTenant, Tenant, found
from atomscope_service.api.times import rfc3339, rfc3339_or_none
from atomscope_service.db.models import JobRow
from atomscope_service.db.repositories import Repositories
from atomscope_service.ids import new_id
from atomscope_service.job_results import BadResult, read_result
from atomscope_service.settings import queued_seconds

MOST_LIVE = 100
"""Attributions of a project that may wait or run at once."""


def render_attribution(row: JobRow, store: ObjectStore | None = None) -> Attribution:
    """A row as the API shows it; with its result when a store is given."""
    result = None
    if store is not None and row.status == "succeeded" and row.result_key is not None:
        try:
            result = read_result(store, row.result_key, "attribution")
        except BadResult as error:
            detail = f"The store holds {error}: delete this attribution and ask again."
            raise ProblemError(500, "result_unreadable", detail) from error
    running = row.status == "running"
    return Attribution(
        id=row.id,
        audit=row.audit_id,
        status=row.status,  # pyright: ignore[reportArgumentType]  (checked when it was written)
        progress=Progress(done=row.done, total=row.total, unit="steps") if running else None,
        query=msgspec.convert(row.request, AttributionQuery),
        result=result,
        error=_shown_error(row),
        created_at=rfc3339(row.created_at),
        started_at=rfc3339_or_none(row.started_at),
        ended_at=rfc3339_or_none(row.ended_at),
    )


def create_attribution(tenant: Tenant, audit_id: str, request: AttributionCreate) -> JobRow:
    """Queue a query; raises 404, 409 unless the audit has succeeded, and 429 when too many wait."""
    now = datetime.now(UTC)
    with tenant.write() as repositories:
        audit = found(repositories.audits, audit_id, "audit", lock=True)
        if audit.status != "succeeded":
            raise ProblemError(409, "audit_not_succeeded", f"This audit is {audit.status}, not succeeded.")
        if repositories.jobs.live() >= MOST_LIVE:
            detail = f"{MOST_LIVE} attributions of this project wait or run: wait for one to end."
            raise ProblemError(429, "too_many_attributions", detail, headers={"Retry-After": "5"})
        row = repositories.jobs.add(
            JobRow(
                id=new_id("atr"),
                project_id=tenant.project_id,
                created_at=now,
                audit_id=audit_id,
                kind="attribution",
                status="queued",
                request=msgspec.to_builtins(request),
                fence=1,
                sequence=0,
                lease_expires_at=now + timedelta(seconds=queued_seconds(tenant.services.settings)),
                done=0,
                total=0,
            )
        )
    announce(lambda: tenant.services.queue.job_added(tenant.project_id, row.id))
    return row


def attribution_row(repositories: Repositories, audit_id: str, job_id: str, *, lock: bool = False) -> JobRow:
    """The attribution of an audit that a path names; raises 404."""
    found(repositories.audits, audit_id, "audit")
    row = found(repositories.jobs, job_id, "attribution", lock=lock)
    if row.audit_id != audit_id or row.kind != "attribution":
        raise not_found("attribution")
    return row


def _shown_error(row: JobRow) -> AuditError | None:
    """Why it failed; the fault of an attempt that is being made again is not shown."""
    return msgspec.convert(row.error, AuditError) if row.status == "failed" else None


class AttributionController(Controller):
    path = "/v1/audits/{audit_id:str}/attributions"
    tags = ["attributions"]  # noqa: RUF012

    @post(operation_id="createAttribution", status_code=202, sync_to_thread=True)
    def create(
        self, tenant: CurrentTenant, audit_id: FromPath[str], data: JSONBody[AttributionCreate]
    ) -> Response[Attribution]:
        """Trace a prompt and its completion to atoms, behaviours and documents."""
        row = create_attribution(tenant, audit_id, data)
        location = f"/v1/audits/{audit_id}/attributions/{row.id}"
        return Response(render_attribution(row), headers={"Location": location})

    @get(operation_id="listAttributions", sync_to_thread=True)
    def list_page(
        self,
        tenant: CurrentTenant,
        audit_id: FromPath[str],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Page[Attribution]:
        """Attributions of an audit, newest first, without their results."""
        with tenant.read() as repositories:
            found(repositories.audits, audit_id, "audit")
        return list_rows(
            tenant,
            lambda rows: rows.jobs,
            render_attribution,
            limit=limit,
            cursor=cursor,
            audit_id=audit_id,
            kind="attribution",
        )

    @get("/{attribution_id:str}", operation_id="getAttribution", sync_to_thread=True)
    def read(
        self,
        request: Request[Any, Any, Any],
        tenant: CurrentTenant,
        audit_id: FromPath[str],
        attribution_id: FromPath[str],
    ) -> Response[Attribution]:
        """One attribution, with its result once it has succeeded."""
        with tenant.read() as repositories:
            row = attribution_row(repositories, audit_id, attribution_id)
        return conditional(request, render_attribution(row, tenant.services.store))

    @delete("/{attribution_id:str}", operation_id="deleteAttribution", status_code=200, sync_to_thread=True)
    def remove(
        self, tenant: CurrentTenant, audit_id: FromPath[str], attribution_id: FromPath[str]
    ) -> Deleted:
        """Delete an attribution and its result; one that waits or runs is not answered any more."""
        with tenant.write() as repositories:
            row = attribution_row(repositories, audit_id, attribution_id, lock=True)
            repositories.deletions.add_prefix(job_prefix(tenant.project_id, audit_id, attribution_id))
            repositories.jobs.remove(row)
        announce(tenant.services.queue.deletions_added)
        return Deleted(id=attribution_id)
