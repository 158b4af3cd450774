"""Where a command's results go, with everything foreign escaped."""

from __future__ import annotations

import codecs
from typing import Any, TextIO

import msgspec

from atomscope.text import visible


class StreamOutput:
    """Results on one stream, notes on another (see `registry.Output`)."""

    def __init__(self, out: TextIO, err: TextIO, *, json: bool) -> None:
        self.json = json
        self._out = out
        self._err = err

    def result(self, value: Any, text: str | None = None) -> None:  # noqa: ANN401
        """Print `value` as one JSON document with `--json`, else `text`, line by line (nothing for None)."""
        if self.json:
            self._out.write(json_text(value, ascii_only=not _writes_unicode(self._out)) + "\n")
        elif text is not None:
            self._out.write(_lines(text))
        self._out.flush()

    def note(self, text: str) -> None:
        if not self.json:
            self.complain(text)

    def complain(self, text: str) -> None:
        """A line on standard error, with `--json` too."""
        self._err.write(_lines(text))
        self._err.flush()


def json_text(value: Any, *, ascii_only: bool = False) -> str:  # noqa: ANN401
    """`value` as indented JSON in which no character can act on a terminal.

    JSON itself escapes only the first 32 control characters; the others, bidirectional overrides among
    them, stand only inside strings, where `\\uXXXX` means the same.
    """
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    return "".join(
        character if character == "\n" or _is_plain(character, ascii_only) else _escaped(character)
        for character in text
    )


def _is_plain(character: str, ascii_only: bool) -> bool:
    return (character.isascii() or not ascii_only) and visible(character) == character


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", errors="surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def _writes_unicode(stream: TextIO) -> bool:
    try:
        return codecs.lookup(stream.encoding or "utf-8").name.startswith("utf")
    except LookupError:
        return False


def _lines(text: str) -> str:
    return "".join(f"{visible(line)}\n" for line in text.split("\n"))
