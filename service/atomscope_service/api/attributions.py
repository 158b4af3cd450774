"""`/v1/audits/{id}/attributions`: from a prompt and its completion to what an audit found."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Controller, Request, Response, delete, get, post
from litestar.params import FromPath, JSONBody

from atomscope.store import ObjectStore
from atomscope.types.attribution import AttributionQuery
from atomscope.types.resources import Attribution, AttributionCreate, Deleted, Page
from atomscope_service.api.audits import require_gradients
from atomscope_service.api.conditional import conditional
from atomscope_service.api.jobs import delete_job, list_jobs, queue_job, read_job, shown
from atomscope_service.api.paging import DEFAULT_LIMIT, Cursor, Limit
from atomscope_service.api.services import CurrentTenant
from atomscope_service.db.models import AuditRow, JobRow


def render_attribution(row: JobRow, store: ObjectStore | None = None) -> Attribution:
    """A row as the API shows it; with its result when a store is given."""
    return Attribution(query=msgspec.convert(row.request, AttributionQuery), **shown(row, store))


def _check_exact(audit: AuditRow) -> None:
    require_gradients(audit, "`exact`")


class AttributionController(Controller):
    path = "/v1/audits/{audit_id:str}/attributions"
    tags = ["attributions"]  # noqa: RUF012

    @post(operation_id="createAttribution", status_code=202, sync_to_thread=True)
    def create(
        self, tenant: CurrentTenant, audit_id: FromPath[str], data: JSONBody[AttributionCreate]
    ) -> Response[Attribution]:
        """Trace a prompt and its completion to atoms, behaviours and documents."""
        row = queue_job(tenant, audit_id, "attribution", data, _check_exact if data.exact else None)
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
        return list_jobs(tenant, audit_id, "attribution", render_attribution, limit=limit, cursor=cursor)

    @get("/{attribution_id:str}", operation_id="getAttribution", sync_to_thread=True)
    def read(
        self,
        request: Request[Any, Any, Any],
        tenant: CurrentTenant,
        audit_id: FromPath[str],
        attribution_id: FromPath[str],
    ) -> Response[Attribution]:
        """One attribution, with its result once it has succeeded."""
        row = read_job(tenant, audit_id, attribution_id, "attribution")
        return conditional(request, render_attribution(row, tenant.services.store))

    @delete("/{attribution_id:str}", operation_id="deleteAttribution", status_code=200, sync_to_thread=True)
    def remove(
        self, tenant: CurrentTenant, audit_id: FromPath[str], attribution_id: FromPath[str]
    ) -> Deleted:
        """Delete an attribution and its result; one that waits or runs is not answered any more."""
        return delete_job(tenant, audit_id, attribution_id, "attribution")
