"""JSON bodies, decoded strictly: unknown fields, wrong types and values out of range name their field.

A key that is given twice is refused too: either value could be the one that was meant.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any

import msgspec
from litestar.dto import AbstractDTO
from litestar.dto.data_structures import DTOFieldDefinition
from litestar.openapi.spec import Reference, Schema
from litestar.typing import FieldDefinition

from atomscope.decoding import repeated_key, with_choices
from atomscope_service.api.problems import ProblemError, invalid

_AT = re.compile(r"(?P<message>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_NAMED = re.compile(r"Object (?:contains unknown|missing required) field `(?P<name>[^`]*)`")


def decode_body(body: bytes, type_: Any) -> Any:  # noqa: ANN401  (a Struct type and its value)
    """Decode a JSON body; raises `ProblemError` 400 `invalid_request` that names the field.

    msgspec decodes strictly, where Litestar's own conversion would take `"5"` for a number.
    """
    try:
        value = msgspec.json.decode(body, type=type_)
        repeated = repeated_key(body)
    except msgspec.ValidationError as error:
        raise invalid(*field_and_message(with_choices(str(error), type_))) from error
    except msgspec.DecodeError as error:
        raise invalid("body", f"not valid JSON: {error}") from error
    except UnicodeDecodeError as error:  # which msgspec lets through
        raise invalid("body", f"UTF-8 is expected; byte {error.start + 1} of a text is not") from error
    except RecursionError as error:
        raise invalid("body", "it is nested too deeply") from error
    if repeated is not None:
        raise invalid("body", f"the key {repeated!r} is given twice in one object")
    if b"\\u0000" in body and _has_nul(msgspec.json.decode(body)):
        raise invalid("body", "text may not hold the character U+0000")
    return value


def field_and_message(text: str) -> tuple[str, str]:
    """Split msgspec's message into the path of the field and what is wrong with it."""
    match = _AT.fullmatch(text)
    message, path = (match["message"], match["path"] or "") if match else (text, "")
    named = _NAMED.match(message)
    if named:
        path = f"{path}.{named['name']}" if path else named["name"]
    return path or "body", message


def _has_nul(value: Any) -> bool:  # noqa: ANN401  (decoded JSON)
    """PostgreSQL cannot store U+0000; refused for every database alike."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_has_nul(item) for pair in value.items() for item in pair)
    return isinstance(value, list) and any(_has_nul(item) for item in value)


class StrictBody(AbstractDTO[Any]):
    """Makes Litestar decode `data` with `decode_body`; set on the whole application."""

    def decode_bytes(self, value: bytes) -> Any:  # noqa: ANN401
        field = self.asgi_connection.route_handler.parsed_data_field
        if field is None:
            raise ProblemError(400, "invalid_request", "This route takes no body.")
        return decode_body(value, field.annotation)

    @classmethod
    def create_for_field_definition(
        cls, field_definition: FieldDefinition, handler_id: str, backend_cls: type[Any] | None = None
    ) -> None:
        """Nothing to prepare: the annotation itself is the schema."""

    @classmethod
    def create_openapi_schema(
        cls,
        field_definition: FieldDefinition,
        handler_id: str,
        schema_creator: Any,  # noqa: ANN401  (private to Litestar)
    ) -> Reference | Schema:
        return schema_creator.for_field_definition(field_definition)

    @classmethod
    def generate_field_definitions(cls, model_type: type[Any]) -> Generator[DTOFieldDefinition, None, None]:
        yield from ()

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        return False
