"""`/v1/audits/{id}/events`: an audit's history, as a list or as server-sent events."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any

import anyio
import anyio.to_thread
import msgspec
from litestar import Controller, Request, Response, get
from litestar.datastructures import Accept
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, QueryParameter
from litestar.response import Stream

from atomscope.types.resources import TERMINAL, Event, Page
from atomscope_service.api.paging import DEFAULT_LIMIT, Cursor, Limit, make_cursor, read_cursor
from atomscope_service.api.problems import ProblemError, invalid
from atomscope_service.api.services import CurrentTenant, Tenant, found
from atomscope_service.api.times import rfc3339
from atomscope_service.db.models import EventRow

EVENT_STREAM = "text/event-stream"
BATCH = 200
_LAST = frozenset(f"audit.{status}" for status in TERMINAL)
_SEQUENCE = re.compile(r"\d{1,9}")

Sequence_ = Annotated[int, QueryParameter(ge=0, lt=2**31, description="Only events after this sequence.")]


def render_event(row: EventRow) -> Event:
    """A row as the API shows it."""
    return Event(
        id=row.id,
        audit_id=row.audit_id,
        sequence=row.sequence,
        type=row.type,
        data=row.data,
        created_at=rfc3339(row.created_at),
    )


def encode_event(event: Event) -> bytes:
    """An event as `text/event-stream`: its JSON is one line, whatever text it holds."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (
        event.sequence,
        event.type.encode(),
        msgspec.json.encode(event),
    )


def read_events(tenant: Tenant, audit_id: str, after: int, limit: int) -> tuple[Sequence[EventRow], bool]:
    """Events after a sequence, and whether the audit has ended; raises 404."""
    with tenant.read() as repositories:
        # The status first: an event that is committed after it was read belongs to an audit seen as live.
        ended = found(repositories.audits, audit_id, "audit").status in TERMINAL
        return repositories.events.after(audit_id, after, limit), ended


async def stream_events(tenant: Tenant, audit_id: str, after: int) -> AsyncGenerator[bytes]:
    """Events as they come, until the audit has ended and all were sent.

    Rows are polled, so a stream can be taken up again at any time, on any process. A comment breaks
    every long silence, so that proxies do not cut the connection.
    """
    settings = tenant.services.settings
    yield b": atomscope\n\n"
    spoken = time.monotonic()
    while True:
        try:
            rows, ended = await anyio.to_thread.run_sync(read_events, tenant, audit_id, after, BATCH)
        except ProblemError:  # the audit was deleted meanwhile: there is nothing more to tell
            return
        for row in rows:
            yield encode_event(render_event(row))
            after = row.sequence
            spoken = time.monotonic()
            if row.type in _LAST:
                return
        if len(rows) == BATCH:
            continue
        if ended:
            return
        if time.monotonic() - spoken >= settings.event_heartbeat_seconds:
            yield b": waiting\n\n"
            spoken = time.monotonic()
        await anyio.sleep(settings.event_poll_seconds)


class EventController(Controller):
    path = "/v1/audits/{audit_id:str}/events"
    tags = ["audits"]  # noqa: RUF012

    @get(
        operation_id="listEvents",
        responses={
            200: ResponseSpec(
                Page[Event],
                generate_examples=False,
                description="A page, or with `Accept: text/event-stream` a stream of `Event`s",
            )
        },
    )
    async def read(
        self,
        *,
        request: Request[Any, Any, Any],
        tenant: CurrentTenant,
        audit_id: FromPath[str],
        after: Sequence_ = 0,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[Any]:
        """An audit's history, oldest first; `Accept: text/event-stream` streams it as it happens."""
        if _wants_stream(request):
            last = request.headers.get("last-event-id", "").strip()
            if last and _SEQUENCE.fullmatch(last) is None:
                raise invalid("Last-Event-ID", "it is the sequence of an event")
            start = int(last) if last else after
            await anyio.to_thread.run_sync(read_events, tenant, audit_id, start, 1)  # 404 before it begins
            return Stream(
                stream_events(tenant, audit_id, start),
                media_type=EVENT_STREAM,
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        listing = f"events/{audit_id}"
        if cursor is not None:
            after = int(read_cursor(tenant, listing, cursor))
        rows, _ = await anyio.to_thread.run_sync(read_events, tenant, audit_id, after, limit + 1)
        following = make_cursor(tenant, listing, str(rows[limit - 1].sequence)) if len(rows) > limit else None
        page = Page(
            data=[render_event(row) for row in rows[:limit]],
            has_more=following is not None,
            next=following,
        )
        return Response(page)


def _wants_stream(request: Request[Any, Any, Any]) -> bool:
    accept = Accept(request.headers.get("accept", "*/*"))
    return accept.best_match(["application/json", EVENT_STREAM]) == EVENT_STREAM
