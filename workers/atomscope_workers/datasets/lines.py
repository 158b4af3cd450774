"""Physical lines of a file, none of them held beyond a limit, and the two formats of one row a line.

Text is UTF-8, lines ended by LF or CRLF; a byte order mark at the beginning is skipped. A line of nothing but
white space is no row: it is counted as a line, not as a document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from atomscope.types.spec import RowForm
from atomscope_workers.datasets.json_text import decode_row
from atomscope_workers.datasets.row import RowFault
from atomscope_workers.datasets.rows import BadRow, Row, bad_row, parse_row

BOM = b"\xef\xbb\xbf"


def skip_bom(stream: BinaryIO) -> None:
    """Move a stream at its beginning behind a byte order mark, where there is one."""
    if stream.read(len(BOM)) != BOM:
        stream.seek(0)


def physical_lines(stream: BinaryIO, limit: int) -> Iterator[bytes | None]:
    """Lines with their ends; None for one of more than `limit` bytes, which is never held whole."""
    while raw := stream.readline(limit + 1):
        if len(raw) <= limit or raw.endswith(b"\n"):
            yield raw
            continue
        while raw and not raw.endswith(b"\n"):
            raw = stream.readline(limit)
        yield None


def is_blank(raw: bytes) -> bool:
    """Whether a line holds nothing but white space."""
    return not raw.strip(b" \t\r\n")


def read_jsonl(path: Path, file: str, limit: int, form: RowForm = "auto") -> Iterator[Row | BadRow]:
    """Every row of a file of one JSON object a line, in order."""
    return _rows(path, file, limit, form, decode_row)


def read_text(path: Path, file: str, limit: int, form: RowForm = "auto") -> Iterator[Row | BadRow]:
    """Every line of a plain text as a row of `text`, its end left out."""
    return _rows(path, file, limit, form, _text_row)


def _text_row(raw: bytes) -> object:
    try:
        return {"text": raw.decode("utf-8")}
    except UnicodeDecodeError as error:
        raise RowFault(None, f"UTF-8 is expected; byte {error.start + 1} of the line is not") from error


def _rows(
    path: Path, file: str, limit: int, form: RowForm, decode: Callable[[bytes], object]
) -> Iterator[Row | BadRow]:
    document = 0
    with path.open("rb") as stream:
        skip_bom(stream)
        for line, raw in enumerate(physical_lines(stream, limit), start=1):
            if raw is not None and is_blank(raw):
                continue
            try:
                if raw is None:
                    raise RowFault(None, f"a line of at most {limit} bytes is expected")
                value = decode(raw.removesuffix(b"\n").removesuffix(b"\r"))
            except RowFault as fault:
                yield bad_row(fault, document=document, line=line, file=file)
            else:
                yield parse_row(value, document=document, line=line, file=file, form=form)
            document += 1
