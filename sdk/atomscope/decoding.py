"""What decoding says of JSON that is not as it should be: the choices there are, and keys given twice."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

_ENUM = re.compile(r"(?P<what>Invalid enum value .*?)(?P<where> - at `\$(?P<path>.*)`)?", re.DOTALL)
_FIELD = re.compile(r"\.(\w+)|\[[^\]]*\]")


def with_choices(text: str, type_: Any) -> str:  # noqa: ANN401  (a type)
    """msgspec's message on decoding `type_`, with the values that a field of few values takes.

    Any other message comes back as it is.
    """
    match = _ENUM.fullmatch(text)
    if match is None:
        return text
    found = [inspect.type_info(type_)]
    for step in _FIELD.finditer(match["path"] or ""):
        found = [inner for item in found for inner in _within(item, step[1])]
    choices = [repr(value) for item in found for value in _choices(item)]
    told = f"; one of {', '.join(choices)} is expected" if choices else ""
    return f"{match['what']}{told}{match['where'] or ''}"


def validation_error(error: msgspec.ValidationError, type_: Any) -> msgspec.ValidationError:  # noqa: ANN401
    """The same error, its choices told."""
    return msgspec.ValidationError(with_choices(str(error), type_))


def repeated_key(content: bytes) -> str | None:
    """The first key that an object of a valid JSON text has twice, at any depth; None where none has.

    A decoder takes the last of the two without a word.
    """
    found: list[str] = []

    def seen(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        found.extend(name for place, name in enumerate(names) if name in names[:place])

    json.loads(content, object_pairs_hook=seen)
    return found[0] if found else None


def _within(item: inspect.Type, name: str | None) -> Iterator[inspect.Type]:
    """Types of a field of an object, or, with no name, of the values of a list or a mapping."""
    if isinstance(item, inspect.UnionType):
        for part in item.types:
            yield from _within(part, name)
    elif name is not None and isinstance(item, inspect.StructType):
        yield from (field.type for field in item.fields if field.encode_name == name)
    elif name is None and isinstance(item, inspect.CollectionType):
        yield item.item_type
    elif name is None and isinstance(item, inspect.DictType):
        yield item.value_type


def _choices(item: inspect.Type) -> Iterator[object]:
    if isinstance(item, inspect.LiteralType):
        yield from item.values
    elif isinstance(item, inspect.UnionType):
        for part in item.types:
            yield from _choices(part)
