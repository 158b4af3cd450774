"""Alpaca's form: `instruction`, `output`, and where they are there `input`, `system` and `history`.

The user's turn is the instruction, and the input on the lines below it where there is one: what LLaMA-Factory
trains on. Pairs of `history` are turns before it, their answers targets as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atomscope_workers.datasets.json_text import decode_json
from atomscope_workers.datasets.messages import MAX_MESSAGES, plain_turn
from atomscope_workers.datasets.row import RowFault, Turn


def read_instruction(row: Mapping[str, Any]) -> tuple[Turn, ...]:
    """The turns of a row, its `system` not among them. Raises `RowFault`."""
    instruction = text_field(row, "instruction")
    answer = text_field(row, "output")
    more = text_field(row, "input") if "input" in row else ""
    question = "\n".join(part for part in (instruction, more) if part)
    return (
        *_history(row.get("history", [])),
        plain_turn("user", question, "instruction"),
        plain_turn("assistant", answer, "output"),
    )


def text_field(row: Mapping[str, Any], name: str) -> str:
    """A field that must be a string. Raises `RowFault`."""
    value = row.get(name)
    if not isinstance(value, str):
        raise RowFault(name, "a string is expected")
    return value


def _history(value: object) -> list[Turn]:
    if isinstance(value, str):
        value = decode_json(value, "history") if value.strip() else []
    if not isinstance(value, list) or len(value) > MAX_MESSAGES // 2:
        raise RowFault(
            "history", f"a list of at most {MAX_MESSAGES // 2} pairs of question and answer is expected"
        )
    turns: list[Turn] = []
    for place, pair in enumerate(value):
        field = f"history[{place}]"
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RowFault(field, "a list of two strings, question and answer, is expected")
        turns.append(plain_turn("user", pair[0], f"{field}[0]"))
        turns.append(plain_turn("assistant", pair[1], f"{field}[1]"))
    return turns
