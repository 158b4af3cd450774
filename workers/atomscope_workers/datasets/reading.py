"""Streaming the rows of a data set in order, well-formed and malformed ones alike, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from atomscope.input_files import DATASET_ENDINGS, dataset_format
from atomscope.types.inputs import DatasetFormat
from atomscope.types.spec import RowForm
from atomscope_workers.datasets.delimited import read_delimited
from atomscope_workers.datasets.json_file import read_json
from atomscope_workers.datasets.lines import read_jsonl, read_text
from atomscope_workers.datasets.parquet import count_parquet, read_parquet
from atomscope_workers.datasets.refusal import refuse_dataset
from atomscope_workers.datasets.rows import BadRow, Row

MAX_ROW_BYTES = 32 * 2**20
"""Of a row as the file has it; a Parquet file's row groups have a limit of their own."""

_READERS: dict[DatasetFormat, Callable[[Path, str, int, RowForm], Iterator[Row | BadRow]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "parquet": lambda path, file, limit, form: read_parquet(path, file, form),
    "csv": partial(read_delimited, delimiter=","),
    "tsv": partial(read_delimited, delimiter="\t"),
    "txt": read_text,
}


def read_rows(
    path: Path, *, file: str, max_rows: int, max_row_bytes: int = MAX_ROW_BYTES, form: RowForm = "auto"
) -> Iterator[Row | BadRow]:
    """Every row of the data set at `path` in order; `file` is its name in messages, `form` what rows have.

    The ending of `path` says the format, one of `DATASET_ENDINGS`. Raises `InvalidInput`:
    `unsupported_format`, `missing_file`, `too_many_rows`, and of single formats `invalid_json`,
    `invalid_csv`, `invalid_parquet` and `bad_column`.
    """
    kind = dataset_format(path.name)
    if kind is None:
        endings = ", ".join(DATASET_ENDINGS)
        raise refuse_dataset("unsupported_format", f"a file that ends in one of {endings} is expected", file)
    if not path.is_file():
        raise refuse_dataset("missing_file", "no such file", file)
    for row in _READERS[kind](path, file, max_row_bytes, form):
        if row.document >= max_rows:
            raise refuse_dataset("too_many_rows", f"at most {max_rows} rows are accepted", file)
        yield row


def count_rows(path: Path) -> int:
    """About how many rows the file has: its lines, or of Parquet its rows; 0 where it cannot be told."""
    kind = dataset_format(path.name)
    if kind == "parquet":
        return count_parquet(path)
    if kind == "json":
        return 0
    with path.open("rb") as stream:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(2**20), b""))
