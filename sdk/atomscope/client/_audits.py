"""Following an audit: its events, and waiting for its end."""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import msgspec

from atomscope.client._progress import ProgressDisplay
from atomscope.client._references import segment
from atomscope.client._service import Service
from atomscope.client._sse import ServerSentEvent, SSEParser
from atomscope.client._transport import Body
from atomscope.client._wire import Request, next_cursor, parse
from atomscope.errors import (
    APIConnectionError,
    APIError,
    AuditCanceled,
    AuditFailed,
    InternalServerError,
    RateLimitError,
    WaitTimeout,
)
from atomscope.types.resources import TERMINAL, Audit, Event, Page

_QUIET = 45.0
"""Seconds without a byte (the service sends heartbeats more often) after which the stream is lost."""
_RECONNECT = 1.0
_MAX_FAILURES = 10
"""Failed connections in a row before following gives up: about a minute, a restart of the service."""
_SLACK = 1.0
"""Seconds by which `wait(timeout=)` may be late while events arrive."""
_LAST = frozenset(f"audit.{status}" for status in TERMINAL)

OnEvent = Callable[[Event], Awaitable[None] | None]


async def get(service: Service, audit_id: str) -> Audit:
    return parse(await service.send(Request("GET", f"v1/audits/{segment(audit_id)}")), Audit)


async def past_events(service: Service, audit_id: str, after: int) -> list[Event]:
    """Every event recorded after sequence `after`, oldest first."""
    events: list[Event] = []
    cursor: str | None = None
    while True:
        params: dict[str, str | int] = {"after": after, "limit": 100}
        if cursor is not None:
            params["cursor"] = cursor
        page = parse(await service.send(_events(audit_id, params, "application/json")), Page[Event])
        events += page.data
        cursor = next_cursor(page, cursor)
        if cursor is None:
            return events


async def follow(
    service: Service, audit_id: str, after: int = 0, deadline: float | None = None
) -> AsyncGenerator[Event]:
    """Events as they happen, up to the one that ends the audit; taken up again where a connection broke.

    `deadline` is a `time.monotonic()`; raises `WaitTimeout` past it, and `APIConnectionError` when the
    service stays away.
    """
    failures = 0
    while True:
        # A read cannot be given another timeout once it runs, so a connection is given no more time than
        # is left, and is renewed when that has become much less.
        patience = _QUIET if deadline is None else max(0.05, min(_QUIET, deadline - time.monotonic()))
        request = _events(audit_id, {}, "text/event-stream", after, patience)
        heard = False
        try:
            async with service.stream(request) as body:
                parser = SSEParser()
                while chunk := await body.read():
                    failures = 0
                    for sent in parser.feed(chunk):
                        event = _event(sent, body)
                        if event.sequence <= after:
                            continue
                        after, heard = event.sequence, True
                        yield event
                        if event.type in _LAST:
                            return
                    _check(audit_id, deadline)
                    if deadline is not None and deadline - time.monotonic() < patience - _SLACK:
                        break
                else:
                    # It ended by itself: at the end of the audit, or because something between cut it.
                    if not heard and (await get(service, audit_id)).status in TERMINAL:
                        return
                    await service.sleep(_RECONNECT)
        except (APIConnectionError, InternalServerError, RateLimitError) as error:
            failures += 1
            if deadline is not None and time.monotonic() >= deadline:
                raise _timed_out(audit_id) from error
            if failures > _MAX_FAILURES:
                raise
            await service.sleep(service.policy.pause(failures - 1))
        _check(audit_id, deadline)


async def wait(
    service: Service,
    audit_id: str,
    timeout: float | None,
    on_event: OnEvent | None,
    bars: ProgressDisplay,
) -> Audit:
    """The audit once it has succeeded; raises `AuditFailed`, `AuditCanceled` or `WaitTimeout`."""
    deadline = None if timeout is None else time.monotonic() + timeout
    after = 0
    try:
        while True:
            async with aclosing(follow(service, audit_id, after, deadline)) as events:
                async for event in events:
                    after = event.sequence
                    bars.event(event)
                    told = None if on_event is None else on_event(event)
                    if inspect.isawaitable(told):
                        await told
            audit = await get(service, audit_id)
            if audit.status in TERMINAL:
                break
            await service.sleep(_RECONNECT)
    finally:
        bars.close()
    return _settled(audit)


def _settled(audit: Audit) -> Audit:
    if audit.status == "canceled":
        raise AuditCanceled(f"audit {audit.id} was canceled")
    if audit.status == "failed":
        if audit.error is None:
            raise AuditFailed(audit.id, "unknown", "the service gives no reason")
        raise AuditFailed(audit.id, audit.error.code, audit.error.detail, audit.error.errors)
    return audit


def _events(
    audit_id: str, params: dict[str, str | int], accept: str, after: int = 0, patience: float | None = None
) -> Request:
    headers = {"Accept": accept, **({"Last-Event-ID": str(after)} if after else {})}
    path = f"v1/audits/{segment(audit_id)}/events"
    return Request("GET", path, params, headers=headers, read_timeout=patience)


def _event(sent: ServerSentEvent, body: Body) -> Event:
    try:
        return msgspec.json.decode(sent.data, type=Event)
    except msgspec.MsgspecError as error:
        raise APIError(
            f"the event stream sent something else than an event: {error} "
            f"(request {body.head.request_id or 'unknown'})"
        ) from error


def _check(audit_id: str, deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise _timed_out(audit_id)


def _timed_out(audit_id: str) -> WaitTimeout:
    return WaitTimeout(f"audit {audit_id} has not ended in time; it goes on")
