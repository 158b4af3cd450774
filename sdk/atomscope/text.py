"""Showing text that nobody vouches for: training data, names, keywords, messages of other programs."""

from __future__ import annotations

import unicodedata

_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that can move a cursor, reorder a line, or hide."""


def counted(count: int, one: str, many: str | None = None) -> str:
    """A number and what it counts: `1 row`, `2 rows`; `many` where it takes more than an `s`."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def visible(text: str, limit: int | None = None) -> str:
    """`text` on one line, every control and formatting character escaped, cut to `limit` characters.

    Escape sequences, bidirectional overrides, zero-width characters and line breaks come out as
    `\\x1b`, `\\u202e`, `\\n`: a terminal shows them and does nothing else.
    """
    cut = limit is not None and len(text) > limit
    shown = "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _UNSAFE
        else character
        for character in (text[: max(limit - 1, 0)] if cut and limit is not None else text)
    )
    return shown + "…" if cut else shown
