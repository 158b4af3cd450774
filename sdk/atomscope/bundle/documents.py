"""`documents/documents.parquet`: every audited document, by rising physical row."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from atomscope.bundle.tables import check_columns
from atomscope.errors import BundleError
from atomscope.types.atoms import DocumentRecord

_TURN = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])

DOCUMENTS_SCHEMA = pa.schema(
    [
        pa.field("document", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("messages", pa.list_(_TURN)),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("n_target_tokens", pa.int32(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),
        pa.field("base_loss", pa.float64()),
        pa.field("gradient_norm", pa.float64(), nullable=False),
    ]
)

_GROUP = 4096
"""Documents of a row group, and those held at a time while reading."""


def write_documents(records: Iterable[DocumentRecord], path: Path) -> None:
    """Write the documents as Parquet, a row group at a time.

    Raises `BundleError` when their rows do not rise, or a text is not valid Unicode.
    """
    last = -1
    try:
        with pq.ParquetWriter(path, DOCUMENTS_SCHEMA, compression="zstd") as writer:
            for group in _groups(records):
                for record in group:
                    if record.document <= last:
                        raise BundleError(f"document {record.document} comes after document {last}")
                    last = record.document
                rows: list[dict[str, Any]] = [msgspec.to_builtins(record) for record in group]
                writer.write_table(pa.Table.from_pylist(rows, schema=DOCUMENTS_SCHEMA))
    except (pa.ArrowException, UnicodeEncodeError) as error:
        raise BundleError(f"the documents cannot be written: {error}") from error


def _groups(records: Iterable[DocumentRecord]) -> Iterator[list[DocumentRecord]]:
    remaining = iter(records)
    while group := list(islice(remaining, _GROUP)):
        yield group


def read_documents(path: Path, rows: Collection[int] | None = None) -> list[DocumentRecord]:
    """Read every document, or those of the physical `rows` that are there, by rising row.

    Memory holds the documents that are asked for and one batch. Raises as `iter_documents` does.
    """
    return list(iter_documents(path, rows))


def iter_documents(path: Path, rows: Collection[int] | None = None) -> Iterator[DocumentRecord]:
    """The same one by one, read in batches. Raises `BundleError` when the file is damaged."""
    wanted = None if rows is None else set(rows)
    found = 0
    try:
        with pq.ParquetFile(path) as file:
            check_columns(path, file.schema_arrow, DOCUMENTS_SCHEMA, {})
            for batch in file.iter_batches(_GROUP, columns=DOCUMENTS_SCHEMA.names):
                if wanted is None:
                    chosen = batch
                elif found < len(wanted):
                    numbers = batch["document"].to_pylist()
                    places = [at for at, number in enumerate(numbers) if number in wanted]
                    chosen = batch.take(pa.array(places, pa.int64()))  # an empty list alone has no type
                else:
                    break
                found += len(chosen)
                yield from msgspec.convert(chosen.to_pylist(), list[DocumentRecord])
    except (pa.ArrowException, OSError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise BundleError(f"{path.name} is damaged: {error}") from error
