"""Streaming the rows of a data set in order, well-formed and malformed ones alike.

JSONL is UTF-8, one JSON object a line, lines ended by LF or CRLF; a byte order mark at the beginning is
skipped. A line of nothing but white space is no row: it is counted as a line, not as a document.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from atomscope_workers.datasets.parquet import count_parquet, read_parquet
from atomscope_workers.datasets.refusal import refuse_dataset
from atomscope_workers.datasets.rows import BadRow, Row, RowFault, bad_row, parse_row

MAX_LINE_BYTES = 32 * 2**20
_BOM = b"\xef\xbb\xbf"


def read_rows(
    path: Path, *, file: str, max_rows: int, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[Row | BadRow]:
    """Every row of the data set at `path` in order; `file` is its name in messages.

    The ending of `path` says the format: `.jsonl` or `.parquet`. Raises `InvalidInput`: `unsupported_format`,
    `missing_file`, `too_many_rows`, and of Parquet `invalid_parquet` and `bad_column`.
    """
    if path.suffix not in (".jsonl", ".parquet"):
        raise refuse_dataset("unsupported_format", "a file that ends in .jsonl or .parquet is expected", file)
    if not path.is_file():
        raise refuse_dataset("missing_file", "no such file", file)
    rows = _read_jsonl(path, file, max_line_bytes) if path.suffix == ".jsonl" else read_parquet(path, file)
    for row in rows:
        if row.document >= max_rows:
            raise refuse_dataset("too_many_rows", f"at most {max_rows} rows are accepted", file)
        yield row


def count_rows(path: Path) -> int:
    """About how many rows the file has: lines of JSONL, rows of Parquet; 0 where it cannot be told."""
    if path.suffix == ".parquet":
        return count_parquet(path)
    with path.open("rb") as stream:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(2**20), b""))


def _read_jsonl(path: Path, file: str, limit: int) -> Iterator[Row | BadRow]:
    document = 0
    with path.open("rb") as stream:
        if stream.read(len(_BOM)) != _BOM:
            stream.seek(0)
        for line, raw in enumerate(_lines(stream, limit), start=1):
            if raw is not None and not raw.strip(b" \t\r\n"):
                continue
            try:
                value = _decode(raw, limit)
            except RowFault as fault:
                yield bad_row(fault, document=document, line=line, file=file)
            else:
                yield parse_row(value, document=document, line=line, file=file)
            document += 1


def _lines(stream: BinaryIO, limit: int) -> Iterator[bytes | None]:
    """Lines with their ends; None for one of more than `limit` bytes, which is never held whole."""
    while raw := stream.readline(limit + 1):
        if len(raw) <= limit or raw.endswith(b"\n"):
            yield raw
            continue
        while raw and not raw.endswith(b"\n"):
            raw = stream.readline(limit)
        yield None


def _decode(raw: bytes | None, limit: int) -> object:
    if raw is None:
        raise RowFault(None, f"a line of at most {limit} bytes is expected")
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise RowFault(None, f"UTF-8 is expected; byte {error.start + 1} of the line is not") from error
    except RecursionError as error:
        raise RowFault(None, "JSON of less depth is expected") from error
    except json.JSONDecodeError as error:
        raise RowFault(None, f"a JSON object is expected ({error.msg}, column {error.colno})") from error
    except ValueError as error:  # a number of too many digits
        raise RowFault(None, f"a JSON object is expected ({error})") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise RowFault(twice[:200], "each field is expected once; this one is given twice")
    return value


def _constant(name: str) -> NoReturn:
    raise RowFault(None, f"JSON is expected, which has no {name}")
