"""Conversations as rows of every form, and rows as files of every format."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from atomscope.types.spec import RowForm
from atomscope_workers.datasets.reading import read_rows
from atomscope_workers.datasets.rows import BadRow, Row

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet")
"""Those that hold rows of fields."""

SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def sharegpt(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation under ShareGPT's names; a call is the text of a `function_call` turn."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if calls := message.get("tool_calls"):
            value = json.dumps([call["function"] for call in calls])
            turns.append({"from": "function_call", "value": value})
        else:
            turns.append({"from": SPEAKERS[message["role"]], "value": message["content"]})
    return turns


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows in the format that the ending of `path` names; lists in CSV and TSV are JSON text."""
    if path.suffix in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(list(rows), indent=1, ensure_ascii=False), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    else:
        path.write_bytes(_delimited(rows, "\t" if path.suffix == ".tsv" else ",").encode())
    return path


def _delimited(rows: Sequence[Mapping[str, Any]], delimiter: str) -> str:
    """As the standard library writes it, lines ended by CRLF."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    sink = io.StringIO()
    writer = csv.DictWriter(sink, names, delimiter=delimiter)
    writer.writeheader()
    for row in rows:
        writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()})
    return sink.getvalue()


def read(path: Path, limit: int = 2**20, form: RowForm = "auto") -> list[Row | BadRow]:
    """Every row of a file."""
    return list(read_rows(path, file=path.name, max_rows=1000, max_row_bytes=limit, form=form))


def good(path: Path, form: RowForm = "auto") -> list[Row]:
    """Every row of a file, none of them malformed."""
    found = read(path, form=form)
    rows = [row for row in found if isinstance(row, Row)]
    assert [row.document for row in rows] == list(range(len(found)))
    return rows


def told(rows: Sequence[Row | BadRow]) -> list[tuple[int, int, str | None, str]]:
    """Row, line, field and message of every malformed row."""
    return [
        (row.document, row.line, row.problems[0].field, row.problems[0].message)
        for row in rows
        if isinstance(row, BadRow)
    ]
