"""Asking for an attribution, and waiting for the worker that makes it."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from atomscope.client._references import segment
from atomscope.client._service import Service
from atomscope.client._wire import Request, parse
from atomscope.errors import APIError, AttributionFailed, UsageError, WaitTimeout
from atomscope.types.attribution import AttributionQuery, AttributionResult
from atomscope.types.resources import Attribution

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 2.0
"""Seconds between two looks: a warm worker answers in a few, a cold one loads the model first."""


def make_query(
    prompt: str | None,
    completion: str | None,
    messages: list[dict[str, Any]] | None,
    *,
    exact: bool,
    documents: int,
) -> AttributionQuery:
    """The query; raises `UsageError` for one that the service would refuse."""
    given = {"prompt": prompt, "completion": completion, "messages": messages}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        query = msgspec.convert(given | {"exact": exact, "documents": documents}, AttributionQuery)
        msgspec.json.encode(query)
    except (msgspec.MsgspecError, TypeError, UnicodeEncodeError, RecursionError) as error:
        raise UsageError(f"not a query: {error}") from error
    return query


async def attribute(
    service: Service, audit_id: str, query: AttributionQuery, timeout: float | None
) -> AttributionResult:
    """The result of a new attribution; raises `AttributionFailed`, and `WaitTimeout` (it goes on)."""
    deadline = None if timeout is None else time.monotonic() + timeout
    path = f"v1/audits/{segment(audit_id)}/attributions"
    asked = parse(await service.send(Request("POST", path, body=query)), Attribution)
    pause = _FIRST_PAUSE
    while asked.status not in ("succeeded", "failed"):
        if deadline is not None and time.monotonic() + pause >= deadline:
            raise WaitTimeout(f"attribution {asked.id} has not ended in time; it goes on")
        await service.sleep(pause)
        pause = min(1.5 * pause, _LONGEST_PAUSE)
        asked = parse(await service.send(Request("GET", f"{path}/{segment(asked.id)}")), Attribution)
    if asked.error is not None:
        raise AttributionFailed(asked.id, asked.error.code, asked.error.detail, asked.error.errors)
    if asked.result is None:
        raise APIError(f"attribution {asked.id} has {asked.status}, but the service gives no result")
    return asked.result
