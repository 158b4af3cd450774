"""Streaming the rows of a `.json` file: a list of objects, one list within an object, or one object a line.

The three cannot be mistaken for each other: the first begins with a bracket, the last has a row of a known
form as its first line. A row is found by the brackets around it, so a malformed one does not spoil those
behind it; where the list itself is broken the rows cannot be told apart, and the file is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from atomscope.errors import InvalidInput
from atomscope.types.spec import RowForm
from atomscope_workers.datasets.json_stream import JsonEnds, JsonStream
from atomscope_workers.datasets.json_text import decode_row
from atomscope_workers.datasets.lines import is_blank, physical_lines, read_jsonl, skip_bom
from atomscope_workers.datasets.refusal import refuse_dataset
from atomscope_workers.datasets.row import BadRow, Row, RowFault, bad_row
from atomscope_workers.datasets.rows import MARKS, parse_row

LISTS = ("data", "train", "rows", "examples")
"""Fields of an object that may hold the rows."""
_NAMES = ", ".join(f"`{name}`" for name in LISTS)
_NAME_BYTES = 2**16


def read_json(path: Path, file: str, limit: int, form: RowForm = "auto") -> Iterator[Row | BadRow]:
    """Every row in order. Raises `InvalidInput` (`invalid_json`)."""
    with path.open("rb") as stream:
        skip_bom(stream)
        begin = stream.tell()
        if _is_row(_first_line(stream, limit)):
            yield from read_jsonl(path, file, limit, form)
            return
        stream.seek(begin)
        yield from _JsonRows(stream, file, limit, form).read()


def _first_line(stream: BinaryIO, limit: int) -> bytes:
    for raw in physical_lines(stream, limit):
        if raw is None or not is_blank(raw):
            return raw or b""
    return b""


def _is_row(raw: bytes) -> bool:
    if not raw.lstrip().startswith(b"{"):
        return False
    try:
        value = decode_row(raw)
    except RowFault:
        return False
    return isinstance(value, Mapping) and any(name in value for name in MARKS)


class _JsonRows:
    def __init__(self, stream: BinaryIO, file: str, limit: int, form: RowForm) -> None:
        self._json = JsonStream(stream)
        self._file = file
        self._limit = limit
        self._form: RowForm = form
        self._document = 0

    def read(self) -> Iterator[Row | BadRow]:
        try:
            first = self._json.peek()
            if first == b"[":
                yield from self._list()
            elif first == b"{":
                yield from self._object()
            else:
                raise self._refuse(
                    f"a list of objects, or an object with a list of them under {_NAMES}, is expected"
                )
            if self._json.peek():
                raise self._refuse(
                    "one JSON value is expected, and more follows it; of one object a line the first must be "
                    "a row of a known form"
                )
        except JsonEnds:
            raise self._refuse("the file ends within a value: it is truncated") from None

    def _list(self) -> Iterator[Row | BadRow]:
        self._json.take()
        if self._json.peek() == b"]":
            self._json.take()
            return
        while True:
            if self._json.peek() in (b",", b"]", b"}", b":"):
                raise self._refuse("a row is expected between commas")
            yield self._row(self._json.value(self._limit))
            self._document += 1
            behind = self._json.take()
            if not behind:
                raise JsonEnds
            if behind == b"]":
                return
            if behind != b",":
                raise self._refuse("a comma is expected between rows, or the end of the list")

    def _object(self) -> Iterator[Row | BadRow]:
        self._json.take()
        found: list[str] = []
        if self._json.peek() == b"}":
            self._json.take()
        else:
            while True:
                yield from self._field(found)
                behind = self._json.take()
                if not behind:
                    raise JsonEnds
                if behind == b"}":
                    break
                if behind != b",":
                    raise self._refuse("a comma is expected between fields")
        if not found:
            raise self._refuse(
                f"a list of objects, or an object with a list of them under {_NAMES}, is expected"
            )

    def _field(self, found: list[str]) -> Iterator[Row | BadRow]:
        """The rows of the next field where it holds them; its name is added to `found` then."""
        name = self._name()
        if self._json.take() != b":":
            raise self._refuse("a colon is expected behind a field's name")
        if name in LISTS and self._json.peek() == b"[":
            found.append(name)
            if len(found) > 1:
                raise self._refuse(f"one list of rows is expected; there are `{found[0]}` and `{name}`")
            yield from self._list()
        elif self._json.value(0) == b"":
            raise self._refuse(f"the value of `{name:.200}` is expected")

    def _name(self) -> str:
        first = self._json.peek()
        if not first:
            raise JsonEnds
        raw = self._json.value(_NAME_BYTES) if first == b'"' else None
        try:
            name = decode_row(raw) if raw is not None else None
        except RowFault:
            name = None
        if not isinstance(name, str):
            raise self._refuse("the name of a field, in quotes, is expected")
        return name

    def _row(self, raw: bytes | None) -> Row | BadRow:
        place = {"document": self._document, "line": self._document + 1}
        try:
            if raw is None:
                raise RowFault(None, f"a row of at most {self._limit} bytes is expected")
            return parse_row(decode_row(raw), file=self._file, form=self._form, **place)
        except RowFault as fault:
            return bad_row(fault, file=self._file, **place)

    def _refuse(self, message: str) -> InvalidInput:
        where = f"behind row {self._document}: " if self._document else ""
        return refuse_dataset("invalid_json", where + message, self._file)
