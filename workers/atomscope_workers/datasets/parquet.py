"""Streaming the rows of a Parquet file, row group by row group, its column types checked first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from atomscope.errors import InvalidInput
from atomscope_workers.datasets.refusal import refuse_dataset
from atomscope_workers.datasets.rows import FIELDS, BadRow, Row, RowFault, bad_row, parse_row

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


def read_parquet(path: Path, file: str) -> Iterator[Row | BadRow]:
    """Every row in order. Raises `InvalidInput`: `invalid_parquet`, `bad_column`."""
    try:
        with pq.ParquetFile(path) as source:
            columns = _check_columns(source.schema_arrow, file)
            _check_row_groups(source.metadata, file)
            document = 0
            for batch in source.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False):
                for value in _values(batch):
                    yield _row(value, document, file)
                    document += 1
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0][:200]
        raise refuse_dataset("invalid_parquet", f"a Parquet file is expected ({reason})", file) from error


def _row(value: dict[str, Any] | None, document: int, file: str) -> Row | BadRow:
    if value is None:
        fault = RowFault(None, "UTF-8 is expected; a string of this row is not")
        return bad_row(fault, document=document, line=document + 1, file=file)
    return parse_row(value, document=document, line=document + 1, file=file)


def _values(batch: Arrow) -> Iterator[dict[str, Any] | None]:
    """The rows of a batch as Python objects; None for one that holds invalid UTF-8."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass  # found before the first row is given, since the whole batch is converted at once
    for position in range(batch.num_rows):
        try:
            yield batch.slice(position, 1).to_pylist()[0]
        except UnicodeDecodeError:
            yield None


def _check_columns(schema: Arrow, file: str) -> list[str]:
    names: list[str] = [name for name in schema.names if name in FIELDS]
    if len(set(names)) != len(names):
        raise _bad_column(file, names[0], "each column is expected once")
    for name in names:
        kind = schema.field(name).type
        if name == "id" and not (_is_string(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
            raise _bad_column(file, name, f"strings or integers are expected, not {kind}")
        if name == "messages" and not (_is_turns(kind) or pa.types.is_null(kind)):
            raise _bad_column(file, name, f"lists of structs of role and content are expected, not {kind}")
        is_text_or_turns = _is_string(kind) or _is_turns(kind) or pa.types.is_null(kind)
        if name in ("prompt", "completion") and not is_text_or_turns:
            raise _bad_column(file, name, f"strings, or lists of structs of role and content, not {kind}")
    if "messages" not in names and not {"prompt", "completion"} <= set(names):
        raise _bad_column(file, "messages", "a column `messages`, or `prompt` and `completion`, is expected")
    return names


def _check_row_groups(metadata: Arrow, file: str) -> None:
    for index in range(metadata.num_row_groups):
        if metadata.row_group(index).total_byte_size > MAX_ROW_GROUP_BYTES:
            raise refuse_dataset(
                "invalid_parquet",
                f"row groups of at most {MAX_ROW_GROUP_BYTES} bytes uncompressed are accepted",
                file,
            )


def _bad_column(file: str, name: str, message: str) -> InvalidInput:
    return refuse_dataset("bad_column", message, file, name)


def _is_string(kind: Arrow) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_turns(kind: Arrow) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(
        kind.value_type
    ):
        return False
    turn = kind.value_type
    fields = {turn.field(index).name: turn.field(index).type for index in range(turn.num_fields)}
    return all(name in fields and _is_string(fields[name]) for name in ("role", "content"))
