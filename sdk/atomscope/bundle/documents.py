"""`documents/documents.parquet`: every audited document, by rising physical row."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from atomscope.bundle.tables import read_parquet
from atomscope.types.atoms import DocumentRecord

DOCUMENTS_SCHEMA = pa.schema(
    [
        pa.field("document", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field(
            "messages", pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
        ),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("n_target_tokens", pa.int32(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),
        pa.field("base_loss", pa.float64(), nullable=False),
        pa.field("gradient_norm", pa.float64(), nullable=False),
    ]
)


def write_documents(records: Iterable[DocumentRecord], path: Path) -> None:
    """Write the documents as Parquet."""
    rows: list[dict[str, Any]] = [msgspec.to_builtins(record) for record in records]
    pq.write_table(pa.Table.from_pylist(rows, schema=DOCUMENTS_SCHEMA), path, compression="zstd")


def read_documents(path: Path) -> list[DocumentRecord]:
    """Read every document; raises `BundleError` when the file is damaged."""
    return msgspec.convert(read_parquet(path, DOCUMENTS_SCHEMA).to_pylist(), list[DocumentRecord])
