"""What reading a data set yields: well-formed rows, malformed ones, and the fault of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from atomscope.errors import InputProblem

Message: TypeAlias = dict[str, Any]
"""A turn as a chat template is given it: `role`, most often `content`, and what else is passed through
(`tool_calls`, `tool_call_id`, `name`, and the fields of `REASONING`). No value is None."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names of a turn's reasoning; transformers gives a template each of them, whichever the turn has."""


@dataclass(frozen=True)
class Turn:
    """One turn, where it stands in its row, and whether an assistant's is a target."""

    message: Message
    field: str
    """Such as `messages[2]`, for faults."""
    trained: bool = True
    content_field: str = ""
    """Where its text stands, when not at `<field>.content`."""

    @property
    def text_field(self) -> str:
        return self.content_field or f"{self.field}.content"


@dataclass(frozen=True)
class Row:
    """A well-formed row."""

    document: int
    """Physical row, from 0."""
    line: int
    """1-based line of a JSONL, CSV, TSV or text file (of the row's first line), else 1-based row."""
    id: str
    form: Literal["chat", "text"]
    turns: tuple[Turn, ...]
    """Of a `text` row two of the roles `prompt` and `completion`, or one of the role `text`."""
    n_prompt: int = 0
    """Turns at the beginning that are never targets, whatever their role."""
    tools: tuple[Message, ...] = ()
    """The functions that the template is told of, in the form in which they were given."""

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(turn.message for turn in self.turns)

    @property
    def field(self) -> str:
        """The field that holds the conversation or text."""
        return self.turns[-1].field.partition("[")[0]

    def stored(self) -> list[dict[str, str]]:
        """`role` and `content` of every turn as text: what is shown, searched and given keywords.

        Reasoning comes before the content and every call, as JSON, behind it, on lines of their own; tools
        are a turn of the role `tools` before the others.
        """
        tools = [{"role": "tools", "content": _lines(self.tools)}] if self.tools else []
        return [*tools, *({"role": m["role"], "content": turn_text(m)} for m in self.messages)]


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


def bad_row(fault: RowFault, *, document: int, line: int, file: str) -> BadRow:
    """A malformed row of one fault."""
    problem = InputProblem(message=fault.message, file=file, line=line, field=fault.field)
    return BadRow(document=document, line=line, problems=(problem,))


def turn_text(message: Mapping[str, Any]) -> str:
    """The text of a turn: reasoning, content and calls, a line each where there are several."""
    reasoning = [message[name] for name in REASONING if name in message]
    calls = [call.get("function", call) for call in message.get("tool_calls", ())]
    content = message.get("content")
    parts = [*reasoning, *([content] if content or not (reasoning or calls) else []), *map(_json, calls)]
    return "\n".join(part or "" for part in parts)


def _lines(values: tuple[Message, ...]) -> str:
    return "\n".join(_json(value) for value in values)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
