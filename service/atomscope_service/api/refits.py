"""`/v1/audits/{id}/refits`: the fit of an audit once more, on the gradients that it stored."""

from __future__ import annotations

import msgspec
from litestar import Controller, Response, get, post
from litestar.params import FromPath, JSONBody

from atomscope.bundle import Bundle, layout
from atomscope.types.refits import NeedsExtraction, refit_config
from atomscope.types.resources import Audit, Page, RefitCreate
from atomscope.types.spec import AuditConfig
from atomscope_service.api.announce import announce
from atomscope_service.api.atoms import open_audit_bundle
from atomscope_service.api.audits import queue_audit, render_audit, require_gradients, settings_named
from atomscope_service.api.paging import DEFAULT_LIMIT, Cursor, Limit, list_rows
from atomscope_service.api.problems import ProblemError
from atomscope_service.api.services import CurrentTenant, Tenant, found, referenced
from atomscope_service.db import extractions
from atomscope_service.db.gradients import gradients_of
from atomscope_service.db.models import AuditRow


def settings_of(parent: AuditConfig, request: RefitCreate) -> AuditConfig:
    """The settings of a refit; raises 400 that names the field, and 422 `needs_extraction`."""
    with settings_named():
        try:
            return refit_config(parent, request.config, request.preset)
        except NeedsExtraction as error:
            detail = f"{error}."
            raise ProblemError(422, "needs_extraction", detail, param=f"config.{error.setting}") from error


def require_stored(bundle: Bundle, *, sketched: bool) -> None:
    """Raise 409 `old_bundle` or `gradients_missing` unless there are gradients, or a sketch, to read."""
    if not bundle.holds(layout.TOKENS):
        raise ProblemError(409, "old_bundle", "This audit was made before there were refits: audit again.")
    if not bundle.holds(layout.gradient_sketch(0) if sketched else layout.gradient_shard(0)):
        detail = "The gradients of this audit are no longer in the store: audit again."
        raise ProblemError(409, "gradients_missing", detail)


def create_refit(tenant: Tenant, audit_id: str, request: RefitCreate) -> AuditRow:
    """Queue a refit of an audit that has succeeded.

    Raises 400 for an unknown preset or setting, 404, 409 `audit_not_succeeded`, `old_bundle`,
    `gradients_not_kept`, `gradients_expired` or `gradients_missing`, 422 `needs_extraction`, `not_found`
    without the base model.
    """
    bundle, _ = open_audit_bundle(tenant, audit_id)
    with tenant.read() as repositories:
        row = found(repositories.audits, audit_id, "audit")
        require_gradients(row, "A refit", sketch=True)
        sketched = gradients_of(row) == "sketch"
    require_stored(bundle, sketched=sketched)
    with tenant.write() as repositories:
        # Locked: a deletion of the audit sees the refit, or the refit sees that the audit is gone.
        parent = found(repositories.audits, audit_id, "audit", lock=True)
        require_gradients(parent, "A refit", sketch=True)
        config = settings_of(msgspec.convert(parent.config, AuditConfig), request)
        model = referenced(repositories.models, parent.base_model_id, "model", "base_model", lock=True)
        row = queue_audit(
            repositories,
            request,
            config,
            base_model_id=model.id,
            adapter_id=parent.adapter_id,
            dataset_id=parent.dataset_id,
            parent_id=parent.id,
        )
        extractions.inherit(repositories.session, parent, row)
    announce(lambda: tenant.services.queue.audit_created(tenant.project_id, row.id))
    return row


class RefitController(Controller):
    path = "/v1/audits/{audit_id:str}/refits"
    tags = ["audits"]  # noqa: RUF012

    @post(operation_id="createRefit", status_code=202, sync_to_thread=True)
    def create(
        self, tenant: CurrentTenant, audit_id: FromPath[str], data: JSONBody[RefitCreate]
    ) -> Response[Audit]:
        """Fit an audit's stored gradients under other settings: a new audit, that extracts nothing."""
        row = create_refit(tenant, audit_id, data)
        return Response(render_audit(tenant, row), headers={"Location": f"/v1/audits/{row.id}"})

    @get(operation_id="listRefits", sync_to_thread=True)
    def list_page(
        self,
        tenant: CurrentTenant,
        audit_id: FromPath[str],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Page[Audit]:
        """Refits of an audit, newest first, without their progress."""
        with tenant.read() as repositories:
            found(repositories.audits, audit_id, "audit")
        return list_rows(
            tenant,
            lambda rows: rows.audits,
            lambda row: render_audit(tenant, row),
            limit=limit,
            cursor=cursor,
            parent_id=audit_id,
        )
