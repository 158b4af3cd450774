"""What goes over the wire: requests, answers, and what an answer means. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import httpx
import msgspec

from atomscope import errors
from atomscope.text import visible
from atomscope.types.resources import Page
from atomscope.types.spec import AuditConfig

T = TypeVar("T")

BLOCK_BYTES = 1 << 20
"""How much of a file is in memory at a time."""
_EXCERPT = 200
_BY_STATUS: dict[int, type[errors.APIStatusError]] = {
    400: errors.BadRequestError,
    401: errors.AuthenticationError,
    403: errors.PermissionDeniedError,
    404: errors.NotFoundError,
    409: errors.ConflictError,
    413: errors.PayloadTooLargeError,
    422: errors.UnprocessableEntityError,
    429: errors.RateLimitError,
}

Params = Mapping[str, str | int | float]


@dataclass(frozen=True)
class FileSlice:
    """Bytes `offset .. offset + size` of a file, read block by block as they are sent."""

    path: Path
    offset: int
    size: int

    def open(self) -> BinaryIO:
        """The file, at the beginning of the slice."""
        source = self.path.open("rb")
        source.seek(self.offset)
        return source

    def block(self, source: BinaryIO, left: int) -> bytes:
        """The next block of a slice with `left` bytes to go; raises `InvalidInput` if the file shrank."""
        block = source.read(min(BLOCK_BYTES, left))
        if not block:
            raise errors.InvalidInput("file_changed", f"{self.path} became shorter while it was sent")
        return block


@dataclass(frozen=True)
class Request:
    """A request to a path under the base URL."""

    method: str
    path: str
    params: Params = field(default_factory=dict[str, str | int | float])
    body: object = None
    """A Struct, or what JSON holds; None sends none."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    read_timeout: float | None = None
    """Seconds without a byte after which it fails; None is the client's own."""


@dataclass(frozen=True)
class Outgoing:
    """One attempt, ready to be sent. The key is among the headers only where it may go."""

    method: str
    url: str
    headers: Mapping[str, str]
    content: bytes | FileSlice | None = None
    read_timeout: float | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class Reply:
    """A whole answer; its headers are found whatever their case."""

    status: int
    headers: httpx.Headers
    content: bytes
    request_id: str | None = None
    """Under which the service logged it; the client's own where the answer names none."""
    attempts: int = 1

    def json(self) -> Any:  # noqa: ANN401  (whatever JSON holds)
        """The body as plain values; raises `APIError` when it is not JSON."""
        try:
            return msgspec.json.decode(self.content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise unreadable(self, f"not JSON: {excerpt(self.content)!r}") from error


def check(reply: Reply) -> Reply:
    """An answer that stands (2xx, 304); raises `APIStatusError` for an error, `APIError` for a redirect."""
    if 200 <= reply.status < 300 or reply.status == 304:
        return reply
    if reply.status >= 400:
        raise problem(reply)
    if reply.status >= 300:
        target = visible(reply.headers.get("location", "nowhere"), _EXCERPT)
        raise unreadable(reply, f"a redirect to {target}, which is not followed: check base_url")
    raise unreadable(reply, "not a status that ends a request")


def parse(reply: Reply, kind: type[T]) -> T:
    """The answer's body as `kind`; unknown fields are left aside, so that a newer service may add some.

    Raises `APIError` when the body is not what the API answers.
    """
    value = _without_unknown_settings(reply.json())
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise unreadable(reply, f"not {getattr(kind, '__name__', kind)}: {error}") from error


def problem(reply: Reply) -> errors.APIStatusError:
    """The exception that an answer of an error status stands for."""
    try:
        decoded = reply.json()
    except errors.APIError:
        decoded = None  # a proxy's page, say: the status and a glimpse are all there is
    body: dict[str, Any] = cast("dict[str, Any]", decoded) if isinstance(decoded, dict) else {}
    if not body:
        body = {
            "code": "unknown",
            "detail": excerpt(reply.content) or httpx.codes.get_reason_phrase(reply.status),
        }
    default = errors.InternalServerError if reply.status >= 500 else errors.APIStatusError
    kind = _BY_STATUS.get(reply.status, default)
    told = body.get("request_id")
    request_id = reply.headers.get("x-request-id") or (told if isinstance(told, str) else reply.request_id)
    if not isinstance(body.get("errors", []), list):
        body = {**body, "errors": []}
    return kind(status=reply.status, problem=body, request_id=request_id)


def unreadable(reply: Reply, why: str) -> errors.APIError:
    kind = visible(reply.headers.get("content-type", "no content type"), _EXCERPT)
    message = f"the answer could not be read ({reply.status}, {kind}): {why}"
    return with_request_id(errors.APIError, message, reply.request_id)


E = TypeVar("E", bound=errors.APIError)


def with_request_id(kind: type[E], message: str, request_id: str | None) -> E:
    """An `APIError` that carries the request id and tells it."""
    error = kind(f"{message} (request {request_id or 'unknown'})")
    error.request_id = request_id
    return error


def next_cursor(page: Page[Any], cursor: str | None) -> str | None:
    """Where the page after this one begins, None at the end; raises `APIError` rather than go in circles."""
    if not page.has_more:
        return None
    if page.next is None or page.next == cursor:
        raise errors.APIError("a list says that it goes on, but not where")
    return page.next


def excerpt(content: bytes) -> str:
    """The beginning of a body that was not understood, on one line."""
    return visible(" ".join(content[: 4 * _EXCERPT].decode(errors="replace").split()), _EXCERPT)


def _without_unknown_settings(value: Any) -> Any:  # noqa: ANN401
    """Leave out settings of audits that this version does not know.

    `AuditConfig` refuses unknown fields, as it must where an audit is asked for; in an answer they only
    mean that the service is newer.
    """
    if not isinstance(value, dict):
        return value
    answer = cast("dict[str, Any]", value)
    config, data = answer.get("config"), answer.get("data")
    if answer.get("object") == "audit" and isinstance(config, dict):
        known = {
            k: v for k, v in cast("dict[str, Any]", config).items() if k in AuditConfig.__struct_fields__
        }
        return {**answer, "config": known}
    if isinstance(data, list):
        return {**answer, "data": [_without_unknown_settings(item) for item in cast("list[Any]", data)]}
    return answer
