"""`/v1/audits/{id}/evaluations`: what turning behaviours up and down does, beside what chance does."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Controller, Request, Response, delete, get, post
from litestar.params import FromPath, JSONBody

from atomscope.store import ObjectStore
from atomscope.types.evaluation import EvaluationQuery
from atomscope.types.resources import Deleted, Evaluation, EvaluationCreate, Page
from atomscope_service.api.conditional import conditional
from atomscope_service.api.jobs import delete_job, list_jobs, queue_job, read_job, shown
from atomscope_service.api.paging import DEFAULT_LIMIT, Cursor, Limit
from atomscope_service.api.services import CurrentTenant
from atomscope_service.db.models import JobRow


def render_evaluation(row: JobRow, store: ObjectStore | None = None) -> Evaluation:
    """A row as the API shows it; with its result when a store is given."""
    return Evaluation(query=msgspec.convert(row.request, EvaluationQuery), **shown(row, store))


class EvaluationController(Controller):
    path = "/v1/audits/{audit_id:str}/evaluations"
    tags = ["evaluations"]  # noqa: RUF012

    @post(operation_id="createEvaluation", status_code=202, sync_to_thread=True)
    def create(
        self, tenant: CurrentTenant, audit_id: FromPath[str], data: JSONBody[EvaluationCreate]
    ) -> Response[Evaluation]:
        """Steer atoms and behaviours to several strengths, and compare with random directions."""
        row = queue_job(tenant, audit_id, "evaluation", data)
        location = f"/v1/audits/{audit_id}/evaluations/{row.id}"
        return Response(render_evaluation(row), headers={"Location": location})

    @get(operation_id="listEvaluations", sync_to_thread=True)
    def list_page(
        self,
        tenant: CurrentTenant,
        audit_id: FromPath[str],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Page[Evaluation]:
        """Evaluations of an audit, newest first, without their results."""
        return list_jobs(tenant, audit_id, "evaluation", render_evaluation, limit=limit, cursor=cursor)

    @get("/{evaluation_id:str}", operation_id="getEvaluation", sync_to_thread=True)
    def read(
        self,
        request: Request[Any, Any, Any],
        tenant: CurrentTenant,
        audit_id: FromPath[str],
        evaluation_id: FromPath[str],
    ) -> Response[Evaluation]:
        """One evaluation, with its result once it has succeeded."""
        row = read_job(tenant, audit_id, evaluation_id, "evaluation")
        return conditional(request, render_evaluation(row, tenant.services.store))

    @delete("/{evaluation_id:str}", operation_id="deleteEvaluation", status_code=200, sync_to_thread=True)
    def remove(self, tenant: CurrentTenant, audit_id: FromPath[str], evaluation_id: FromPath[str]) -> Deleted:
        """Delete an evaluation and its result; the worker that is at it stops."""
        return delete_job(tenant, audit_id, evaluation_id, "evaluation")
