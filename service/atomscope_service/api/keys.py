"""`/v1/keys`: API keys of the project."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from litestar import Controller, Request, Response, delete, get, post
from litestar.params import FromPath, JSONBody

from atomscope.types.resources import APIKey, APIKeyCreate, Deleted, Page
from atomscope_service.api.conditional import conditional
from atomscope_service.api.idempotency import REDACTED
from atomscope_service.api.paging import DEFAULT_LIMIT, Cursor, Limit, list_rows
from atomscope_service.api.problems import ProblemError
from atomscope_service.api.services import CurrentTenant, found
from atomscope_service.api.times import rfc3339, rfc3339_or_none
from atomscope_service.auth.keys import create_key
from atomscope_service.db.models import APIKeyRow
from atomscope_service.db.repositories import Repositories


def render_key(row: APIKeyRow, key: str | None = None) -> APIKey:
    """A row as the API shows it; `key` only in the answer that created it."""
    return APIKey(
        id=row.id,
        name=row.name,
        hint=row.hint,
        created_at=rfc3339(row.created_at),
        last_used_at=rfc3339_or_none(row.last_used_at),
        revoked_at=rfc3339_or_none(row.revoked_at),
        key=key,
    )


def revoke_key(repositories: Repositories, key_id: str) -> APIKeyRow:
    """Revoke a key for good; raises 404, and 409 `last_key` on the project's last live one."""
    live = repositories.api_keys.lock_live()
    row = found(repositories.api_keys, key_id, "key")
    if row.revoked_at is None:
        if len(live) == 1:
            detail = "This is the last live key of its project: create another one first."
            raise ProblemError(409, "last_key", detail)
        row.revoked_at = datetime.now(UTC)
    return row


class KeyController(Controller):
    path = "/v1/keys"
    tags = ["keys"]  # noqa: RUF012

    @post(operation_id="createKey", opt={REDACTED: ("key",)}, sync_to_thread=True)
    def create(self, tenant: CurrentTenant, data: JSONBody[APIKeyCreate]) -> Response[APIKey]:
        """Create a key. It is shown in this answer only: a replay by `Idempotency-Key` leaves it out."""
        with tenant.write() as repositories:
            row, key = create_key(repositories, tenant.services.secret, data.name)
        headers = {"Location": f"/v1/keys/{row.id}", "Cache-Control": "no-store"}
        return Response(render_key(row, key), headers=headers)

    @get(operation_id="listKeys", sync_to_thread=True)
    def list_page(
        self, tenant: CurrentTenant, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
    ) -> Page[APIKey]:
        """Keys, revoked ones included, newest first."""
        return list_rows(tenant, lambda rows: rows.api_keys, render_key, limit=limit, cursor=cursor)

    @get("/{key_id:str}", operation_id="getKey", sync_to_thread=True)
    def read(
        self, request: Request[Any, Any, Any], tenant: CurrentTenant, key_id: FromPath[str]
    ) -> Response[APIKey]:
        """One key."""
        with tenant.read() as repositories:
            row = found(repositories.api_keys, key_id, "key")
        return conditional(request, render_key(row))

    @delete("/{key_id:str}", operation_id="revokeKey", status_code=200, sync_to_thread=True)
    def remove(self, tenant: CurrentTenant, key_id: FromPath[str]) -> Deleted:
        """Revoke a key; 409 on the last live one."""
        with tenant.write() as repositories:
            revoke_key(repositories, key_id)
        return Deleted(id=key_id)
