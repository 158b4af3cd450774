"""Streaming the rows of a Parquet file, row group by row group, its column types checked first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from atomscope.errors import InvalidInput
from atomscope.types.spec import RowForm
from atomscope_workers.datasets.refusal import refuse_dataset
from atomscope_workers.datasets.rows import (
    EXPECTED,
    FORMS,
    MARKS,
    BadRow,
    Row,
    RowFault,
    bad_row,
    looked_at,
    name_form,
    parse_row,
)

MAX_ROW_GROUP_BYTES = 4 * 2**30
"""Uncompressed size of one row group, as the file states it."""
_BATCH_ROWS = 256

Arrow: TypeAlias = Any
"""A pyarrow object; pyarrow ships no types."""


def count_parquet(path: Path) -> int:
    """Rows of the file as its footer states them; 0 where it cannot be read."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError):
        return 0


def read_parquet(path: Path, file: str, form: RowForm = "auto") -> Iterator[Row | BadRow]:
    """Every row in order. Raises `InvalidInput`: `invalid_parquet`, `bad_column`."""
    try:
        with pq.ParquetFile(path) as source:
            columns = _check_columns(source.schema_arrow, file, form)
            _check_row_groups(source.metadata, file)
            document = 0
            for batch in source.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False):
                for value in _values(batch):
                    yield _row(value, document, file, form)
                    document += 1
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0][:200]
        raise refuse_dataset("invalid_parquet", f"a Parquet file is expected ({reason})", file) from error


def _row(value: dict[str, Any] | None, document: int, file: str, form: RowForm) -> Row | BadRow:
    if value is None:
        fault = RowFault(None, "UTF-8 is expected, and each key of a map once")
        return bad_row(fault, document=document, line=document + 1, file=file)
    return parse_row(_without_nulls(value), document=document, line=document + 1, file=file, form=form)


def _without_nulls(value: Any) -> Any:  # noqa: ANN401
    """The value without fields that are null: a struct has every field of its column, given or not."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _values(batch: Arrow) -> Iterator[dict[str, Any] | None]:
    """The rows of a batch as Python objects; None for one that Python cannot hold."""
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
        return
    except (UnicodeDecodeError, KeyError):
        pass  # found before the first row is given, since the whole batch is converted at once
    for position in range(batch.num_rows):
        try:
            yield batch.slice(position, 1).to_pylist(maps_as_pydicts="strict")[0]
        except (UnicodeDecodeError, KeyError):
            yield None


_TEXTS = ("instruction", "output", "input", "system", "text")
_LISTS = ("messages", "conversations", "prompt", "completion", "tools", "functions", "history")


def _check_columns(schema: Arrow, file: str, form: RowForm) -> list[str]:
    fields = looked_at(form)
    names: list[str] = [name for name in schema.names if name in fields]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise _bad_column(file, twice[0], "each column is expected once")
    for name in names:
        kind = schema.field(name).type
        if _is_string(kind) or pa.types.is_null(kind):
            continue
        if name == "id" and not pa.types.is_integer(kind):
            raise _bad_column(file, name, f"strings or integers are expected, not {kind}")
        if name in _TEXTS:
            raise _bad_column(file, name, f"strings are expected, not {kind}")
        if name in _LISTS and not _is_list(kind):
            raise _bad_column(file, name, f"strings or lists are expected, not {kind}")
    if not any(_is_form(names, mark) for mark in MARKS):
        raise _bad_column(file, None, _no_form(names, form))
    return names


def _is_form(names: list[str], mark: str) -> bool:
    """Whether the columns hold the form of a row that `mark` begins; several are told apart row by row."""
    return mark in names and all(field in names for field in FORMS[MARKS[mark]])


def _no_form(names: list[str], form: RowForm) -> str:
    try:
        name_form(names, form)
    except RowFault as fault:
        return fault.message
    return f"{EXPECTED} is expected"


def _check_row_groups(metadata: Arrow, file: str) -> None:
    for index in range(metadata.num_row_groups):
        if metadata.row_group(index).total_byte_size > MAX_ROW_GROUP_BYTES:
            raise refuse_dataset(
                "invalid_parquet",
                f"row groups of at most {MAX_ROW_GROUP_BYTES} bytes uncompressed are accepted",
                file,
            )


def _bad_column(file: str, name: str | None, message: str) -> InvalidInput:
    return refuse_dataset("bad_column", message, file, name)


def _is_string(kind: Arrow) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: Arrow) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
