"""Errors as `application/problem+json` (RFC 9457): every answer of 4xx and 5xx has this form."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import ExceptionHandlersMap
from sqlalchemy.exc import OperationalError

from atomscope.errors import BundleError
from atomscope.store import StoreError
from atomscope.types.resources import Problem
from atomscope_service.api.requests import request_id

PROBLEM_JSON = "application/problem+json"

logger = logging.getLogger(__name__)

_CODES = {
    400: "invalid_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    500: "internal_error",
}


class ProblemError(Exception):
    """Ends a request with this problem.

    `code` is stable and machine-readable; `param` names the field or parameter at fault; `errors` lists
    faults as `{field, message}` objects.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        param: str | None = None,
        errors: list[dict[str, Any]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.param = param
        self.errors = errors or []
        self.headers = dict(headers or {})


def not_found(what: str) -> ProblemError:
    """404: the same whether the thing never was, is gone, or belongs to another project."""
    return ProblemError(404, "not_found", f"There is no such {what}.")


def unknown_reference(param: str, what: str) -> ProblemError:
    """422 for an id within a body that leads nowhere."""
    return ProblemError(422, "not_found", f"There is no such {what}.", param=param)


def invalid(field: str, message: str) -> ProblemError:
    """400 for one field or parameter."""
    errors = [{"field": field, "message": message}]
    return ProblemError(400, "invalid_request", f"{field}: {message}", param=field, errors=errors)


def problem_response(request: Request[Any, Any, Any], error: ProblemError) -> Response[bytes]:
    """The answer to a request that ended with `error`."""
    problem = Problem(
        type=f"urn:atomscope:problem:{error.code}",
        title=HTTPStatus(error.status).phrase,
        status=error.status,
        detail=error.detail,
        code=error.code,
        request_id=request_id(request.scope),
        param=error.param,
        errors=error.errors,
    )
    return Response(
        msgspec.json.encode(problem),
        status_code=error.status,
        media_type=PROBLEM_JSON,
        headers={"Cache-Control": "no-store", **error.headers},
    )


def _of_problem(request: Request[Any, Any, Any], error: ProblemError) -> Response[bytes]:
    return problem_response(request, error)


def _of_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    status = error.status_code
    if status >= 500:
        return _of_anything(request, error)
    detail = error.detail
    errors: list[dict[str, Any]] = []
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        errors = [_fault(extra) for extra in error.extra]
        detail = "; ".join(f"{fault['field']}: {fault['message']}" for fault in errors) or detail
    elif status == 413:
        detail = "The body is larger than this route accepts."
    elif status == 404:
        detail = "There is nothing at this path."
    elif status == 405:
        detail = "This path does not take this method."
    param = errors[0]["field"] if len(errors) == 1 else None
    code = _CODES.get(status, "invalid_request")
    problem = ProblemError(status, code, detail, param=param, errors=errors, headers=error.headers)
    return problem_response(request, problem)


def _fault(extra: Any) -> dict[str, str]:  # noqa: ANN401  (Litestar's free-form list)
    field = str(extra.get("key", "body"))
    if field == "data":  # the handler's argument: the request has no body at all
        return {"field": "body", "message": "a JSON body is needed"}
    return {"field": field, "message": str(extra.get("message", "invalid"))}


def _of_store(request: Request[Any, Any, Any], error: StoreError) -> Response[bytes]:
    logger.error("request %s: the object store failed: %s", request_id(request.scope), error)
    return problem_response(
        request,
        ProblemError(
            503, "store_unavailable", "The object store did not answer.", headers={"Retry-After": "5"}
        ),
    )


def _of_database(request: Request[Any, Any, Any], error: OperationalError) -> Response[bytes]:
    logger.error("request %s: the database failed: %s", request_id(request.scope), error.orig)
    return problem_response(
        request,
        ProblemError(
            503, "database_unavailable", "The database did not answer.", headers={"Retry-After": "5"}
        ),
    )


def _of_bundle(request: Request[Any, Any, Any], error: BundleError) -> Response[bytes]:
    logger.error("request %s: a bundle cannot be read: %s", request_id(request.scope), error)
    detail = "The bundle of this audit is damaged, or of another version of the software."
    return problem_response(request, ProblemError(500, "bundle_damaged", detail))


def _of_anything(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    logger.error("request %s failed", request_id(request.scope), exc_info=error)
    detail = "Something went wrong on our side. Give the request id when you report it."
    return problem_response(request, ProblemError(500, "internal_error", detail))


EXCEPTION_HANDLERS: ExceptionHandlersMap = {
    ProblemError: _of_problem,
    HTTPException: _of_http,
    StoreError: _of_store,
    BundleError: _of_bundle,
    OperationalError: _of_database,
    Exception: _of_anything,
}
