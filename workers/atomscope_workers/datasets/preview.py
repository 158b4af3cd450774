"""The beginning of a document's text, to recognise it by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PREVIEW = 160
"""Characters."""


def preview(messages: Sequence[Mapping[str, str]]) -> str:
    """The beginning of the first turn that is not the system's, as it is in the data."""
    turns = [turn["content"] for turn in messages if turn["role"] != "system"]
    return (turns[0] if turns else "")[:PREVIEW]
