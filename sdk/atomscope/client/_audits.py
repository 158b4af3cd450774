"""Following an audit: its events, and waiting for its end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

from atomscope.client._progress import ProgressDisplay
from atomscope.client._transport import Transport
from atomscope.client._wire import EventParser, Request, parse
from atomscope.errors import APIConnectionError, AuditCanceled, AuditFailed, WaitTimeout
from atomscope.types.resources import TERMINAL, Audit, Event, Page

_QUIET = 45.0
"""Seconds without a byte (the service sends heartbeats more often) after which the stream is lost."""
_RECONNECT = 1.0
_LAST = frozenset(f"audit.{status}" for status in TERMINAL)


async def get(transport: Transport, audit_id: str) -> Audit:
    return parse(await transport.send(Request("GET", f"v1/audits/{audit_id}")), Audit)


async def past_events(transport: Transport, audit_id: str, after: int) -> list[Event]:
    """Every event recorded after sequence `after`, oldest first."""
    events: list[Event] = []
    while True:
        request = Request("GET", f"v1/audits/{audit_id}/events", {"after": after, "limit": 100})
        page = parse(await transport.send(request), Page[Event])
        events += page.data
        if not page.has_more or not page.data:
            return events
        after = page.data[-1].sequence


async def follow(
    transport: Transport, audit_id: str, after: int = 0, deadline: float | None = None
) -> AsyncIterator[Event]:
    """Events as they happen, up to the one that ends the audit; taken up again where a connection broke.

    `deadline` is a `time.monotonic()`; raises `WaitTimeout` past it.
    """
    while True:
        parser = EventParser()
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        request = Request("GET", f"v1/audits/{audit_id}/events", headers=headers)
        left = _QUIET if deadline is None else max(0.05, min(_QUIET, deadline - time.monotonic()))
        try:
            async with transport.lines(request, left) as lines:
                async for line in lines:
                    event = parser.feed(line)
                    if event is not None and event.sequence > after:
                        after = event.sequence
                        yield event
                        if event.type in _LAST:
                            return
                    _check(audit_id, deadline)
        except APIConnectionError:
            # `get` retries and raises when the service is really away; else the stream alone had broken.
            _check(audit_id, deadline)
            await get(transport, audit_id)
        _check(audit_id, deadline)
        await transport.sleep(_RECONNECT)


def _check(audit_id: str, deadline: float | None) -> None:
    if deadline is not None and time.monotonic() > deadline:
        raise WaitTimeout(f"audit {audit_id} has not ended in time; it goes on")


async def wait(
    transport: Transport,
    audit_id: str,
    timeout: float | None,
    on_event: Callable[[Event], None] | None,
    bars: ProgressDisplay,
) -> Audit:
    """The audit once it has succeeded; raises `AuditFailed`, `AuditCanceled` or `WaitTimeout`."""
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        async for event in follow(transport, audit_id, deadline=deadline):
            bars.event(event)
            if on_event is not None:
                on_event(event)
    finally:
        bars.close()
    audit = await get(transport, audit_id)
    if audit.status == "canceled":
        raise AuditCanceled(f"audit {audit_id} was canceled")
    if audit.error is not None:
        raise AuditFailed(audit_id, audit.error.code, audit.error.detail, audit.error.errors)
    return audit
