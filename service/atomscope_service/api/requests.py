"""What every answer carries: `X-Request-Id` and headers that keep browsers from guessing."""

from __future__ import annotations

import re
from typing import Any

from litestar.datastructures import MutableScopeHeaders
from litestar.types import Message, Scope

from atomscope_service.ids import new_id

_CLIENT_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_STATE_KEY = "atomscope_request_id"

API_POLICY = "default-src 'none'; frame-ancestors 'none'"
"""Content-Security-Policy of everything that is not a page."""


def request_id(scope: Scope) -> str:
    """The id of this request: the client's own when it is well-formed, else a new one."""
    state: dict[str, Any] = scope["state"]
    if _STATE_KEY not in state:
        given = next((value for name, value in scope["headers"] if name.lower() == b"x-request-id"), b"")
        state[_STATE_KEY] = given.decode() if _CLIENT_ID.fullmatch(given) else new_id("req")
    return state[_STATE_KEY]


async def add_headers(message: Message, scope: Scope) -> None:
    """Litestar's `before_send` hook: runs for every answer, errors of routing included."""
    if message["type"] != "http.response.start" or scope["type"] != "http":
        return
    headers = MutableScopeHeaders.from_message(message)
    headers["X-Request-Id"] = request_id(scope)
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "no-referrer"
    headers.setdefault("Content-Security-Policy", API_POLICY)
    headers.setdefault("Cache-Control", "private, no-cache")
