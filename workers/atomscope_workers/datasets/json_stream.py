"""Walking through a JSON document a value at a time, none of them held beyond a limit."""

from __future__ import annotations

import re
from typing import BinaryIO

_BLOCK = 2**20
_SPACE = re.compile(rb"[ \t\r\n]*")
_STRUCTURE = re.compile(rb'[\[\]{}"]')
_TEXT = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_SCALAR = re.compile(rb'[^ \t\r\n,:\[\]{}"]*')


class JsonEnds(Exception):  # noqa: N818
    """The file ends within a value."""


class JsonStream:
    """The bytes of a JSON file from where `stream` stands; structure is followed, values are not checked."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._block = b""
        self._at = 0

    def peek(self) -> bytes:
        """The next byte that is not white space, which stays; empty at the end."""
        while True:
            match = _SPACE.match(self._block, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._block):
                return self._block[self._at : self._at + 1]
            if not self._fill():
                return b""

    def take(self) -> bytes:
        """The next byte that is not white space; empty at the end."""
        found = self.peek()
        self._at += len(found)
        return found

    def value(self, limit: int) -> bytes | None:
        """The bytes of the next value; None where they are more than `limit`. Raises `JsonEnds`.

        Brackets are counted, not matched: a value with the wrong ones is given as it is.
        """
        held = _Held(limit)
        first = self.peek()
        if not first:
            raise JsonEnds
        if first in b"[{":
            self._nested(held)
        elif first == b'"':
            self._at += 1
            held.add(first)
            self._text(held)
        else:
            self._scalar(held)
        return held.bytes()

    def _nested(self, held: _Held) -> None:
        depth = 0
        while True:
            match = _STRUCTURE.search(self._block, self._at)
            end = match.end() if match else len(self._block)
            held.add(self._block[self._at : end])
            self._at = end
            if match is None:
                if not self._fill():
                    raise JsonEnds
                continue
            found = match.group()
            if found == b'"':
                self._text(held)
            else:
                depth += 1 if found in b"[{" else -1
                if depth == 0:
                    return

    def _text(self, held: _Held) -> None:
        """The rest of a string behind its opening quote, the closing one included."""
        while True:
            match = _TEXT.match(self._block, self._at)
            end = match.end() if match else self._at
            held.add(self._block[self._at : end])
            self._at = end
            if self._block[end : end + 1] == b'"':
                held.add(b'"')
                self._at += 1
                return
            # The block ends here, or with the backslash of a pair whose other half is in the next one.
            if not self._fill():
                raise JsonEnds

    def _scalar(self, held: _Held) -> None:
        while True:
            match = _SCALAR.match(self._block, self._at)
            end = match.end() if match else self._at
            held.add(self._block[self._at : end])
            self._at = end
            if end < len(self._block) or not self._fill():
                return

    def _fill(self) -> bool:
        """Put the next block behind what is not taken yet, at most one byte; False at the end."""
        block = self._stream.read(_BLOCK)
        self._block = self._block[self._at :] + block
        self._at = 0
        return bool(block)


class _Held:
    """Bytes put together up to a limit, and beyond it only counted."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._parts: list[bytes] = []

    def add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= self._limit:
            self._parts.append(part)
        else:
            self._parts.clear()

    def bytes(self) -> bytes | None:
        return b"".join(self._parts) if self._size <= self._limit else None
