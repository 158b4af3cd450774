"""What goes over the wire: requests, answers, problems and server-sent events. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import msgspec

from atomscope import errors
from atomscope.types.resources import Event

T = TypeVar("T")

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


@dataclass(frozen=True)
class Request:
    """A request to a path under the base URL."""

    method: str
    path: str
    params: Mapping[str, str | int | float] = field(default_factory=dict[str, str | int | float])
    body: msgspec.Struct | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def content(self) -> bytes | None:
        return None if self.body is None else msgspec.json.encode(self.body)


def parse(response: httpx.Response, kind: type[T]) -> T:
    """The answer's body as `kind`; unknown fields are left aside, so that a newer server may add some.

    Raises `APIError` when the body is not what the API answers.
    """
    try:
        return msgspec.json.decode(response.content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        asked = f"{response.request.method} {response.request.url.path}"
        request_id = response.headers.get("x-request-id", "unknown")
        raise errors.APIError(
            f"the answer to {asked} is not what the API answers: {error} (request {request_id})"
        ) from error


def problem(response: httpx.Response) -> errors.APIStatusError:
    """The exception that an answer of an error status stands for; the body must have been read."""
    try:
        decoded = msgspec.json.decode(response.content)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        decoded = None  # a proxy's page, say: the status is all there is
    body: dict[str, Any] = decoded if isinstance(decoded, dict) else {"title": response.reason_phrase}
    kind = _BY_STATUS.get(response.status_code) or (
        errors.InternalServerError if response.status_code >= 500 else errors.APIStatusError
    )
    request_id = response.headers.get("x-request-id") or body.get("request_id")
    return kind(status=response.status_code, problem=body, request_id=request_id)


class EventParser:
    """Server-sent events from lines. Comments (heartbeats) and unknown fields give nothing."""

    def __init__(self) -> None:
        self._data: list[str] = []

    def feed(self, line: str) -> Event | None:
        """Take one line without its end; an event when the line completed one.

        Raises `APIError` when the data is not an event.
        """
        if line:
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            return None
        if not self._data:
            return None
        data, self._data = "\n".join(self._data), []
        try:
            return msgspec.json.decode(data, type=Event)
        except msgspec.MsgspecError as error:
            raise errors.APIError(f"the event stream sent something else than an event: {error}") from error
