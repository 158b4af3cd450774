"""JSON as it is accepted anywhere in a data set: UTF-8, no NaN or infinity, every field given once."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

from atomscope_workers.datasets.row import RowFault


def decode_row(raw: bytes) -> object:
    """The value of a row's bytes. Raises `RowFault`."""
    try:
        return decode_json(raw.decode("utf-8"), None)
    except UnicodeDecodeError as error:
        raise RowFault(None, f"UTF-8 is expected; byte {error.start + 1} of the row is not") from error


def decode_json(text: str, field: str | None) -> object:
    """The value of `text`, which stands in `field`, or is the row. Raises `RowFault`."""
    what = "JSON" if field else "a JSON object"
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except RowFault as fault:
        place = ": ".join(part for part in (field, fault.field) if part) or None
        raise RowFault(place, fault.message) from None
    except RecursionError as error:
        raise RowFault(field, "JSON of less depth is expected") from error
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"its line {error.lineno}"
        raise RowFault(field, f"{what} is expected ({error.msg}, {place})") from error
    except ValueError as error:  # a number of too many digits
        raise RowFault(field, f"{what} is expected ({error})") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise RowFault(twice[:200], "each field is expected once; this one is given twice")
    return value


def _constant(name: str) -> NoReturn:
    raise RowFault(None, f"JSON is expected, which has no {name}")
