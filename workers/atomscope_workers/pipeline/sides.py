"""The two sides of a document: what the model is given, and what it is trained to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

RESPONDING = frozenset({"assistant", "completion", "text"})
"""Roles whose turns are responses; a row of plain text is one response."""


def sides(messages: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """Prompt and response of a document's turns, each joined by line breaks."""
    prompt = [turn["content"] for turn in messages if turn["role"] not in RESPONDING]
    response = [turn["content"] for turn in messages if turn["role"] in RESPONDING]
    return "\n".join(prompt), "\n".join(response)
