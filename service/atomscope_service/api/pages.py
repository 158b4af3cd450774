"""`/docs`: the API reference (Scalar), served whole from this package."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from litestar import Controller, Request, Response, get
from litestar.params import FromPath

from atomscope_service.api.conditional import tagged
from atomscope_service.api.problems import not_found
from atomscope_service.auth.middleware import PUBLIC

PAGE_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # Scalar adds its styles by script
        "img-src 'self' data:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

ASSETS = {"scalar.js": "text/javascript", "docs.js": "text/javascript", "scalar.LICENSE": "text/plain"}


@cache
def _asset(name: str) -> tuple[bytes, str]:
    """An asset and its ETag."""
    content = files("atomscope_service.web").joinpath("static", name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'


class PageController(Controller):
    path = "/docs"
    include_in_schema = False
    opt = {PUBLIC: True}  # noqa: RUF012  (Litestar's own annotation)

    @get(operation_id="getDocs", sync_to_thread=False)
    def page(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """The page."""
        content, etag = _asset("docs.html")
        response = tagged(request, content, etag)
        response.media_type = "text/html"
        response.headers["Content-Security-Policy"] = PAGE_POLICY
        return response

    @get("/assets/{name:str}", operation_id="getDocsAsset", sync_to_thread=False)
    def asset(self, request: Request[Any, Any, Any], name: FromPath[str]) -> Response[bytes]:
        """A script of the page."""
        if name not in ASSETS:
            raise not_found("asset")
        content, etag = _asset(name)
        response = tagged(request, content, etag)
        response.media_type = ASSETS[name]
        return response
