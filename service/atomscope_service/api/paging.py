"""Cursor lists: `{data, has_more, next}`, newest first."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from litestar.params import QueryParameter

from atomscope.types.resources import Page
from atomscope_service.api.problems import ProblemError
from atomscope_service.api.services import Tenant
from atomscope_service.auth.signing import is_signed, sign
from atomscope_service.db.models import ProjectRow
from atomscope_service.db.repositories import Repositories, Repository

T = TypeVar("T")
R = TypeVar("R", bound=ProjectRow)

Limit = Annotated[int, QueryParameter(ge=1, le=100, description="Items of a page.")]
Cursor = Annotated[str | None, QueryParameter(max_length=500, description="`next` of the page before.")]

DEFAULT_LIMIT = 20


def make_cursor(tenant: Tenant, listing: str, position: str) -> str:
    """An opaque cursor, valid for this project and this listing (its filters included) only."""
    signature = sign(tenant.services.secret.derive("cursors"), tenant.project_id, listing, position)
    return base64.urlsafe_b64encode(f"{signature}{position}".encode()).rstrip(b"=").decode()


def read_cursor(tenant: Tenant, listing: str, cursor: str) -> str:
    """The position in a cursor; raises 400 `invalid_cursor` when we did not make it for this listing."""
    bad = ProblemError(400, "invalid_cursor", "This cursor was not given by this list.", param="cursor")
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise bad from error
    signature, position = text[:43], text[43:]
    if not is_signed(
        tenant.services.secret.derive("cursors"), signature, tenant.project_id, listing, position
    ):
        raise bad
    return position


def list_rows(
    tenant: Tenant,
    pick: Callable[[Repositories], Repository[R]],
    render: Callable[[R], T],
    *,
    limit: int,
    cursor: str | None,
    **equal: Any,  # noqa: ANN401
) -> Page[T]:
    """One page of a project's rows, newest first; columns of `equal` match."""
    with tenant.read() as repositories:
        repository = pick(repositories)
        listing = msgspec.json.encode([repository.row.__tablename__, equal], order="sorted").decode()
        before = read_cursor(tenant, listing, cursor) if cursor is not None else None
        rows = repository.page(limit=limit + 1, before=before, **equal)
    data = [render(row) for row in rows[:limit]]
    if len(rows) <= limit:
        return Page(data=data, has_more=False)
    return Page(data=data, has_more=True, next=make_cursor(tenant, listing, rows[limit - 1].id))


def list_offsets(
    tenant: Tenant, listing: str, items: list[T], *, limit: int, cursor: str | None
) -> tuple[list[T], str | None]:
    """One page of a list that never changes (it lies in a bundle), and the cursor of the one after it."""
    start = int(read_cursor(tenant, listing, cursor)) if cursor is not None else 0
    end = start + limit
    return items[start:end], make_cursor(tenant, listing, str(end)) if end < len(items) else None
