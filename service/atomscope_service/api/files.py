"""`/v1/files`: signed downloads of a local store. On S3 the store's own presigned URLs take its place."""

from __future__ import annotations

import re
from typing import Annotated, Any

import anyio.to_thread
from litestar import Controller, Request, get
from litestar.params import FromQuery, QueryParameter
from litestar.response import Stream

from atomscope.store import ObjectNotFound
from atomscope_service.api.problems import ProblemError, not_found
from atomscope_service.api.services import CurrentServices
from atomscope_service.api.streams import stream_object
from atomscope_service.auth.middleware import PUBLIC
from atomscope_service.uploads.links import FileLink
from atomscope_service.uploads.service import transfer_of
from atomscope_service.uploads.transfer import LocalTransfer

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and length that a `Range` header asks for; None for the whole object.

    One range is served; other units and lists of ranges are ignored, as RFC 9110 allows. Raises 416
    when the range lies outside of the object.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or not (match[1] or match[2]):
        return None
    if match[1]:
        first = int(match[1])
        last = min(int(match[2]), size - 1) if match[2] else size - 1
        if match[2] and int(match[2]) < first:
            return None  # not a valid range: ignored
    else:
        first, last = max(0, size - int(match[2])), size - 1
    if first >= size or last < first:
        headers = {"Content-Range": f"bytes */{size}"}
        raise ProblemError(416, "range_not_satisfiable", f"The file has {size} bytes.", headers=headers)
    return first, last - first + 1


class FileController(Controller):
    path = "/v1/files"
    tags = ["files"]  # noqa: RUF012

    @get(
        operation_id="getFile",
        opt={PUBLIC: True},
        security=[],
        media_type="application/octet-stream",
    )
    async def read(
        self,
        request: Request[Any, Any, Any],
        services: CurrentServices,
        key: Annotated[str, QueryParameter(max_length=1000)],
        expires: FromQuery[int],
        signature: Annotated[str, QueryParameter(max_length=100)],
    ) -> Stream:
        """A file of the local store. The URL is signed, expires, and needs no key; `Range` is honoured."""
        FileLink(key=key, expires=expires).check(services.secret.derive("links"), signature)
        if not isinstance(transfer_of(services), LocalTransfer):
            raise not_found("file")
        try:
            size = await anyio.to_thread.run_sync(services.store.size, key)
        except ObjectNotFound as error:
            raise not_found("file") from error
        wanted = byte_range(request.headers.get("range"), size)
        start, length = wanted or (0, size)
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Length": str(length),
            "Content-Disposition": f'attachment; filename="{key.rpartition("/")[2]}"',
        }
        if wanted is not None:
            headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
        return Stream(
            stream_object(services.store, key, start, length),
            status_code=200 if wanted is None else 206,
            media_type="application/octet-stream",
            headers=headers,
        )
