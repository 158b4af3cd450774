"""ETags of single resources, and `If-None-Match`."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import msgspec
from litestar import Request, Response

T = TypeVar("T")


def matches(request: Request[Any, Any, Any], etag: str) -> bool:
    """Whether `If-None-Match` names this entity tag (weak comparison, RFC 9110)."""
    given = request.headers.get("if-none-match")
    if given is None:
        return False
    return given.strip() == "*" or etag in (item.strip().removeprefix("W/") for item in given.split(","))


def conditional(request: Request[Any, Any, Any], value: T) -> Response[T]:
    """`value` as JSON with the digest of its encoding as `ETag`; 304 when the client has it."""
    etag = f'"{hashlib.sha256(msgspec.json.encode(value)).hexdigest()[:32]}"'
    return tagged(request, value, etag)


def tagged(request: Request[Any, Any, Any], value: T, etag: str) -> Response[T]:
    """`value` with this `ETag`; 304 when the client has it."""
    if matches(request, etag):
        return Response(None, status_code=304, headers={"ETag": etag})  # pyright: ignore[reportReturnType]
    return Response(value, headers={"ETag": etag})
