"""Streaming the rows of CSV and TSV files, as RFC 4180 has them, under a header of the fields' names.

A value that holds the delimiter, a quote or a line break stands in quotes, a quote in it twice. Values are
text; lists (`messages`, `conversations`, `tools`, `history`) are JSON text. A row's number of line is that of
its first line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from atomscope.text import counted
from atomscope.types.spec import RowForm
from atomscope_workers.datasets.lines import physical_lines, skip_bom
from atomscope_workers.datasets.refusal import refuse_dataset
from atomscope_workers.datasets.row import BadRow, Row, RowFault, bad_row
from atomscope_workers.datasets.rows import looked_at, name_form, parse_row

MAX_COLUMNS = 4096
_TEXTS = ("prompt", "completion", "instruction", "output", "text")
"""Columns in which nothing is an empty text; in the others it is no value."""


@dataclass(frozen=True)
class _Record:
    line: int
    """1-based, of its first physical line."""
    raw: bytes
    """Without the end of its last line."""


def read_delimited(
    path: Path, file: str, limit: int, form: RowForm = "auto", *, delimiter: str
) -> Iterator[Row | BadRow]:
    """Every row in order, fields parted by `delimiter`.

    Raises `InvalidInput`: `bad_column` for a header that names no form of row or a field twice,
    `invalid_csv` for a row beyond `limit` bytes or a quote that is not closed: where the next row begins
    cannot be told then.
    """
    with path.open("rb") as stream:
        skip_bom(stream)
        records = _records(stream, file, limit)
        header = next(records, None)
        if header is None:
            return
        names = _header(header, delimiter, file, form)
        for document, record in enumerate(records):
            try:
                value = _value(record, names, delimiter, form)
            except RowFault as fault:
                yield bad_row(fault, document=document, line=record.line, file=file)
            else:
                yield parse_row(value, document=document, line=record.line, file=file, form=form)


def _records(stream: BinaryIO, file: str, limit: int) -> Iterator[_Record]:
    """Lines put together while a quote is open, empty lines between them left out."""
    parts: list[bytes] = []
    size, quotes, begin = 0, 0, 0
    for line, raw in enumerate(physical_lines(stream, limit), start=1):
        if not parts:
            if raw is not None and not raw.strip(b"\r\n"):
                continue
            begin = line
        if raw is None or size + len(raw) > limit:
            message = (
                f"the row of line {begin} is longer than {limit} bytes, or a quote in it is never closed"
            )
            raise refuse_dataset("invalid_csv", message, file)
        parts.append(raw)
        size += len(raw)
        quotes += raw.count(b'"')
        if quotes % 2 == 0:
            yield _Record(begin, b"".join(parts).removesuffix(b"\n").removesuffix(b"\r"))
            parts, size, quotes = [], 0, 0
    if parts:
        raise refuse_dataset("invalid_csv", f"a quote in the row of line {begin} is never closed", file)


def _header(record: _Record, delimiter: str, file: str, form: RowForm) -> list[str]:
    try:
        names = [name.strip() for name in _split(record.raw, delimiter)]
        fields = looked_at(form)
        twice = [name for name in fields if names.count(name) > 1]
        if twice:
            raise RowFault(twice[0], "each column is expected once")
        name_form([name for name in names if name in fields], form)
    except RowFault as fault:
        parted = "tabs" if delimiter == "\t" else "commas"
        raise refuse_dataset(
            "bad_column", f"the header, names parted by {parted}: {fault.message}", file, fault.field
        ) from fault
    return names


def _value(record: _Record, names: list[str], delimiter: str, form: RowForm) -> dict[str, str]:
    values = _split(record.raw, delimiter)
    if len(values) != len(names):
        wanted = counted(len(names), "column is", "columns are")
        given = f"{'is' if len(values) == 1 else 'are'} {len(values)}"
        raise RowFault(None, f"{wanted} expected, as in the header; there {given}")
    fields = looked_at(form)
    return {
        name: value
        for name, value in zip(names, values, strict=True)
        if name in fields and (value or name in _TEXTS)
    }


def _split(raw: bytes, delimiter: str) -> list[str]:
    """The values of a record. Raises `RowFault`."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowFault(None, f"UTF-8 is expected; byte {error.start + 1} of the row is not") from error
    values: list[str] = []
    at = 0
    while True:
        if len(values) == MAX_COLUMNS:
            raise RowFault(None, f"at most {MAX_COLUMNS} columns are accepted")
        quoted = text.startswith('"', at)
        match = (_QUOTED if quoted else _BARE[delimiter]).match(text, at)
        if match is None:  # an odd number of quotes, which no record has
            raise RowFault(None, f"the value of column {len(values) + 1} has a quote that nothing closes")
        values.append(match.group(1).replace('""', '"') if quoted else match.group())
        at = match.end()
        if at == len(text):
            return values
        if text[at] != delimiter:
            what = "behind the closing quote" if quoted else "in it that is not at its beginning"
            found = "something" if quoted else "a quote"
            raise RowFault(
                None,
                f"the value of column {len(values)} has {found} {what}; a value with quotes stands in quotes "
                "itself, each of its own twice",
            )
        at += 1


_QUOTED = re.compile(r'"([^"]*+(?:""[^"]*+)*+)"')
_BARE = {",": re.compile(r'[^,"]*+'), "\t": re.compile(r'[^\t"]*+')}
