"""Query parameters: a misspelt filter must not quietly mean "no filter", nor the second of two win."""

from __future__ import annotations

from typing import Any

from litestar import Request

from atomscope_service.api.problems import ProblemError, invalid


def check_parameters(request: Request[Any, Any, Any]) -> None:
    """Litestar's `before_request` hook: raise 400 for a query parameter unknown here, or given twice."""
    known = request.route_handler.parsed_fn_signature.parameters.keys()
    unknown = sorted(name for name in request.query_params if name not in known)
    if unknown:
        errors = [{"field": name, "message": "unknown query parameter"} for name in unknown]
        detail = f"This route takes no query parameter {unknown[0]!r}."
        raise ProblemError(400, "invalid_request", detail, param=unknown[0], errors=errors)
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if given.count(name) > 1:
            raise invalid(name, "it is given more than once")
