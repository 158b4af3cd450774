"""Attributions: from what a caller gives to a query, and to its result."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from atomscope.client._jobs import ATTRIBUTIONS
from atomscope.client._service import Service
from atomscope.errors import UsageError
from atomscope.types.attribution import AttributionQuery, AttributionResult


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
    asked = await ATTRIBUTIONS.ask(service, audit_id, query)
    return cast(AttributionResult, (await ATTRIBUTIONS.finish(service, asked, timeout)).result)
