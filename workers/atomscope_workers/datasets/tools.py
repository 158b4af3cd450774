"""Functions that a conversation may call, and calls of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from atomscope_workers.datasets.json_text import decode_json
from atomscope_workers.datasets.row import Message, RowFault

MAX_TOOLS = 1024


def read_tools(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The tools of a row, from `tools`, passed through, or the older `functions`, each wrapped as a tool.

    Either is a list of objects or JSON text of one; empty counts as absent. Raises `RowFault`.
    """
    if row.get("tools") and row.get("functions"):
        raise RowFault("functions", "`tools` or `functions` is expected, not both")
    if row.get("functions"):
        functions = _descriptions(row["functions"], "functions")
        return tuple({"type": "function", "function": item} for item in functions)
    return _descriptions(row["tools"], "tools") if row.get("tools") else ()


def _descriptions(value: object, field: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        if not value.strip():
            return ()
        value = decode_json(value, field)
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise RowFault(
            field, f"a list of at most {MAX_TOOLS} functions, or JSON text of such a list, is expected"
        )
    return tuple(_named(item, f"{field}[{place}]") for place, item in enumerate(value))


def read_calls(value: object, field: str) -> list[Message]:
    """`tool_calls` of a turn: OpenAI's form, or bare objects of `name` and `arguments`, passed through.

    Raises `RowFault`.
    """
    if not isinstance(value, list) or not value:
        raise RowFault(field, "a list of at least one call is expected")
    calls = [_named(item, f"{field}[{place}]") for place, item in enumerate(value)]
    for place, call in enumerate(calls):
        wrapped = "function" in call
        arguments = call["function"].get("arguments") if wrapped else call.get("arguments")
        if not isinstance(arguments, str | Mapping | None):
            inner = ".function" if wrapped else ""
            raise RowFault(
                f"{field}[{place}]{inner}.arguments", "an object, or JSON text of one, is expected"
            )
    return calls


def calls_of_text(text: str, field: str) -> list[Message]:
    """The calls of a `function_call` turn, whose text is JSON of one call or a list of them."""
    value = decode_json(text, field)
    calls = read_calls(value if isinstance(value, list) else [value], field)
    return [call if "function" in call else {"type": "function", "function": call} for call in calls]


def _named(value: object, field: str) -> Message:
    if not isinstance(value, dict):
        raise RowFault(field, "an object is expected")
    inner = value.get("function", value)
    where = f"{field}.function" if "function" in value else field
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise RowFault(f"{where}.name", "the name of a function is expected")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RowFault(field, f"values that JSON can hold are expected ({error})") from error
    return dict(value)
