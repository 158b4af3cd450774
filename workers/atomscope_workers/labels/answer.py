"""From a language model's answer to a label: one line, nothing that hides, of bounded length."""

from __future__ import annotations

import re
import unicodedata

LONGEST_LABEL = 100
"""Characters of a label."""

_THOUGHT = re.compile(r"\A.*</think>|\A\s*<think>.*", re.DOTALL)
"""What reasoning models say before their answer, where the server leaves it in; all, where it never ended."""
_NAMED = re.compile(r"\A(?:label|name|group name|answer)\s*:\s*", re.IGNORECASE)
_AROUND = "\"'`*_# \t\u2018\u2019\u201c\u201d\u00ab\u00bb"
"""Quotes and Markdown's marks."""
_DROPPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})


def label_of(answer: str) -> str | None:
    """The first line of an answer that says anything; None where none does.

    Control and formatting characters are dropped, Markdown and quotes around the line too, and what is longer
    than `LONGEST_LABEL` is cut. It is still text that nobody vouches for: escape it where it is shown.
    """
    for line in _THOUGHT.sub("", answer).splitlines():
        kept = "".join(
            " " if character.isspace() else character
            for character in line
            if character.isspace() or unicodedata.category(character) not in _DROPPED
        )
        label = _NAMED.sub("", kept.strip(_AROUND)).strip(_AROUND)
        label = " ".join(label.split())
        if any(character.isalnum() for character in label):
            return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1].rstrip() + "…"
    return None
