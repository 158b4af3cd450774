"""The beginning of a document's text, to recognise it by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PREVIEW = 160
"""Characters."""


def preview(messages: Sequence[Mapping[str, str]]) -> str:
    """The beginning of the first turn that is neither the system's nor the tools', as it is in the data."""
    turns = [turn["content"] for turn in messages if turn["role"] not in ("system", "tools")]
    return (turns[0] if turns else "")[:PREVIEW]
