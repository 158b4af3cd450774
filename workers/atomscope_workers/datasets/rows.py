"""One row of a fine-tuning set: what is accepted, and what is said of a row that is not.

A row is an object in one of three forms; fields not named here are ignored.

- `messages`: a list of turns, each with `role` (`system`, `user` or `assistant`) and `content` (a string).
- `prompt` and `completion`, both strings: plain text, no chat template.
- `prompt` and `completion`, both lists of turns as above; only turns of `completion` are targets.

`id` (a string or a whole number) is optional. A field that is null counts as absent. Fields that would change
what a chat template renders, or what is trained on, are refused rather than ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from atomscope.errors import InputProblem

ROLES = ("system", "user", "assistant")
MAX_MESSAGES = 1024
MAX_CHARACTERS = 16 * 2**20
"""Of all contents of a row."""
MAX_ID_CHARACTERS = 512

FIELDS = ("id", "messages", "prompt", "completion", "tools", "functions", "chat_template_kwargs")
"""Every field of a row that is looked at."""

_REFUSED_OF_ROW = ("tools", "functions", "chat_template_kwargs")
_REFUSED_OF_MESSAGE = (
    "tool_calls",
    "tool_call_id",
    "function_call",
    "reasoning_content",
    "reasoning",
    "thinking",
    "weight",
    "images",
    "audio",
)


@dataclass(frozen=True)
class Row:
    """A well-formed row."""

    document: int
    """Physical row, from 0."""
    line: int
    """1-based line of a JSONL file, or row of a Parquet file."""
    id: str
    form: Literal["chat", "text"]
    messages: tuple[dict[str, str], ...]
    """`role` and `content` of each turn; of a `text` row two, with the roles `prompt` and `completion`."""
    n_prompt: int
    """Turns at the beginning that are never targets, whatever their role."""


@dataclass(frozen=True)
class BadRow:
    """A malformed row and its faults, at least one."""

    document: int
    line: int
    problems: tuple[InputProblem, ...]


class RowFault(Exception):  # noqa: N818
    """One fault of a row, on its way to an `InputProblem`."""

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


def parse_row(value: object, *, document: int, line: int, file: str) -> Row | BadRow:
    """The row that `value` (decoded JSON, or a Parquet row) describes, or what is wrong with it."""
    try:
        return _parse(value, document, line)
    except RowFault as fault:
        return bad_row(fault, document=document, line=line, file=file)


def bad_row(fault: RowFault, *, document: int, line: int, file: str) -> BadRow:
    """A malformed row of one fault."""
    problem = InputProblem(message=fault.message, file=file, line=line, field=fault.field)
    return BadRow(document=document, line=line, problems=(problem,))


def _parse(value: object, document: int, line: int) -> Row:
    if not isinstance(value, Mapping):
        raise RowFault(None, "an object is expected")
    row = {key: item for key, item in value.items() if item is not None}
    for field in _REFUSED_OF_ROW:
        if row.get(field):
            raise RowFault(field, "conversations with tools or template settings are not supported")
    identity = _id(row.get("id"), document)
    if "messages" in row:
        if "prompt" in row or "completion" in row:
            raise RowFault("messages", "`messages`, or `prompt` and `completion`, is expected, not both")
        turns = _turns(row["messages"], "messages")
        return _checked(Row(document, line, identity, "chat", turns, 0))
    missing = [field for field in ("prompt", "completion") if field not in row]
    if len(missing) == 2:
        raise RowFault(None, "`messages`, or `prompt` and `completion`, is expected")
    if missing:
        raise RowFault(missing[0], "`prompt` and `completion` are expected together")
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        texts = ({"role": "prompt", "content": prompt}, {"role": "completion", "content": completion})
        return _checked(Row(document, line, identity, "text", texts, 1))
    if isinstance(prompt, list) and isinstance(completion, list):
        head = _turns(prompt, "prompt")
        return _checked(
            Row(document, line, identity, "chat", head + _turns(completion, "completion"), len(head))
        )
    raise RowFault(
        "completion", "`prompt` and `completion` must both be strings or both be lists of messages"
    )


def _id(value: object, document: int) -> str:
    if value is None:
        return f"row-{document}"
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise RowFault("id", "a string or a whole number is expected")
    if isinstance(value, int) and abs(value) >= 2**64:
        raise RowFault("id", "a whole number of at most 64 bits is expected")
    identity = str(value)
    if len(identity) > MAX_ID_CHARACTERS or not _encodable(identity):
        raise RowFault("id", f"valid text of at most {MAX_ID_CHARACTERS} characters is expected")
    return identity


def _turns(value: object, field: str) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise RowFault(field, "a list of at least one message is expected")
    if len(value) > MAX_MESSAGES:
        raise RowFault(field, f"at most {MAX_MESSAGES} messages are accepted")
    return tuple(_turn(item, f"{field}[{position}]") for position, item in enumerate(value))


def _turn(value: Any, field: str) -> dict[str, str]:  # noqa: ANN401
    if not isinstance(value, Mapping):
        raise RowFault(field, "an object with `role` and `content` is expected")
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise RowFault(f"{field}.role", f"one of {', '.join(ROLES)} is expected")
    for name in _REFUSED_OF_MESSAGE:
        if value.get(name) is not None and value.get(name) != []:
            raise RowFault(f"{field}.{name}", "messages of `role` and `content` alone are supported")
    if not isinstance(content, str):
        raise RowFault(f"{field}.content", "a string is expected")
    return {"role": str(role), "content": content}


def _checked(row: Row) -> Row:
    if sum(len(turn["content"]) for turn in row.messages) > MAX_CHARACTERS:
        raise RowFault(None, f"at most {MAX_CHARACTERS} characters are accepted in a row")
    for position, turn in enumerate(row.messages):
        if not _encodable(turn["content"]):
            field = turn["role"] if row.form == "text" else f"messages[{position}].content"
            raise RowFault(field, "valid Unicode is expected; it holds half of a surrogate pair")
    return row


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
