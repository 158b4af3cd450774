"""`Idempotency-Key` on every POST: the first answer is kept and given again.

The unique constraint on (project, route, key) decides between requests that arrive together. Answers
that say "try again" (408, 409, 429, 5xx) are not kept.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import anyio
import anyio.to_thread
import msgspec
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from atomscope_service.api.problems import ProblemError
from atomscope_service.auth.keys import Caller
from atomscope_service.db.engine import Database
from atomscope_service.db.models import IdempotencyRow
from atomscope_service.db.repositories import Repositories
from atomscope_service.ids import new_id
from atomscope_service.settings import Settings

REDACTED = "idempotency_redacts"
"""Handler option: fields of the answer that are null when it is given again (secrets are not stored)."""

ABANDONED = timedelta(minutes=15)
"""A first request that has not ended by then died with its process: another may take its place."""

_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_KEPT_HEADERS = frozenset({"content-type", "location"})
_TRANSIENT = frozenset({408, 409, 429})


class Answer(msgspec.Struct, frozen=True):
    """An answer that was kept."""

    status: int
    headers: dict[str, str]
    body: str


class Claim(msgspec.Struct, frozen=True):
    """The right to run a request, held by the row of this id."""

    row_id: str


class Idempotency(ASGIMiddleware):
    """Runs after authentication."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._kept = timedelta(seconds=settings.idempotency_seconds)
        self._max_body = settings.max_json_bytes

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Replay the kept answer, or run the request and keep its answer."""
        key = _key_of(scope)
        caller = scope.get("auth")
        if (
            scope["type"] != "http"
            or scope["method"] != "POST"
            or key is None
            or not isinstance(caller, Caller)
        ):
            await next_app(scope, receive, send)
            return
        body = await _read_body(receive, self._max_body)
        digest = hashlib.sha256(body).hexdigest()
        route = f"POST {scope['path']}"
        outcome = await anyio.to_thread.run_sync(self._claim, caller.project_id, route, key, digest)
        if isinstance(outcome, Answer):
            await _send_answer(send, outcome)
            return
        messages: list[Message] = []

        async def collect(message: Message) -> None:
            messages.append(message)

        answer: Answer | None = None
        try:
            await next_app(scope, _replaying(body, receive), collect)
            answer = _answer_of(messages, scope["route_handler"].opt.get(REDACTED, ()))
        finally:
            # A request that was cancelled must still give its claim back.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._finish, caller.project_id, outcome.row_id, answer)
        for message in messages:
            await send(message)

    def _claim(self, project_id: str, route: str, key: str, digest: str) -> Answer | Claim:
        now = datetime.now(UTC)
        row = IdempotencyRow(
            id=new_id("idm"), project_id=project_id, created_at=now, key=key, route=route, body_sha256=digest
        )
        try:
            with self._database.write() as session:
                keys = Repositories(session, project_id).idempotency_keys
                keys.remove_older(now - self._kept)
                keys.add(row)
                return Claim(row.id)
        except IntegrityError:
            return self._existing(project_id, route, key, digest, now)

    def _existing(self, project_id: str, route: str, key: str, digest: str, now: datetime) -> Answer | Claim:
        busy = ProblemError(
            409,
            "idempotency_in_progress",
            "The first request with this Idempotency-Key is still running.",
            headers={"Retry-After": "1"},
        )
        with self._database.write() as session:
            row = Repositories(session, project_id).idempotency_keys.find(route, key)
            if row is None:  # it ended between the two transactions, with an answer that is not kept
                raise busy
            if row.body_sha256 != digest:
                raise ProblemError(
                    422, "idempotency_mismatch", "This Idempotency-Key was used with another body."
                )
            if row.status is not None:
                return Answer(row.status, row.headers or {}, row.body or "")
            if now - row.created_at < ABANDONED:
                raise busy
            row.created_at = now
            return Claim(row.id)

    def _finish(self, project_id: str, row_id: str, answer: Answer | None) -> None:
        with self._database.write() as session:
            keys = Repositories(session, project_id).idempotency_keys
            if answer is None:
                row = keys.get(row_id)
                if row is not None:
                    keys.remove(row)
                return
            session.execute(
                update(IdempotencyRow)
                .where(IdempotencyRow.id == row_id, IdempotencyRow.project_id == project_id)
                .values(status=answer.status, headers=answer.headers, body=answer.body)
            )


def _key_of(scope: Scope) -> str | None:
    header = next((value for name, value in scope["headers"] if name.lower() == b"idempotency-key"), None)
    if header is None:
        return None
    key = header.decode("latin-1")
    if _KEY.fullmatch(key) is None:
        raise ProblemError(
            400,
            "invalid_request",
            "An Idempotency-Key is 1 to 255 printable ASCII characters.",
            param="Idempotency-Key",
        )
    return key


async def _read_body(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ProblemError(400, "invalid_request", "The client left before its body was whole.")
        if message["type"] != "http.request":
            continue
        body += message["body"]
        if len(body) > limit:
            raise ProblemError(413, "body_too_large", f"A body may hold {limit} bytes.")
        if not message["more_body"]:
            return bytes(body)


def _replaying(body: bytes, receive: Receive) -> Receive:
    pending = [body]

    async def replay() -> Any:  # noqa: ANN401  (an ASGI message)
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replay


def _answer_of(messages: list[Message], redacted: tuple[str, ...]) -> Answer | None:
    """The answer in these ASGI messages; None for one that is not kept."""
    status, headers, body = 500, {}, b""
    for message in messages:
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = {
                name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message["headers"]
            }
        elif message["type"] == "http.response.body":
            body += message["body"]
    if status >= 500 or status in _TRANSIENT:
        return None
    if redacted and 200 <= status < 300:
        value: dict[str, Any] = msgspec.json.decode(body)
        body = msgspec.json.encode(value | dict.fromkeys(redacted))
    kept = {name: value for name, value in headers.items() if name in _KEPT_HEADERS}
    return Answer(status, kept, body.decode())


async def _send_answer(send: Send, answer: Answer) -> None:
    body = answer.body.encode()
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
    headers += [(b"idempotent-replayed", b"true"), (b"content-length", str(len(body)).encode())]
    more: Literal[False] = False
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more})
