"""`atoms/coefficients.parquet`: documents' strengths on atoms and their sparse codes, where not zero."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from atomscope.errors import BundleError

COEFFICIENTS_SCHEMA = pa.schema(
    [
        pa.field("document", pa.int64(), nullable=False),
        pa.field("atom", pa.int32(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
_CODE = pa.field("code", pa.float64(), nullable=False)
"""Left out by writers to whom strength and code are one."""


class Coefficients:
    """Strengths and sparse codes in coordinate form, sorted by atom, then document."""

    def __init__(
        self,
        document: NDArray[np.int64],
        atom: NDArray[np.int32],
        value: NDArray[np.float64],
        code: NDArray[np.float64] | None = None,
    ) -> None:
        order = np.lexsort((document, atom))
        self.document = document[order]
        """int64 (n,): physical row of the data set."""
        self.atom = atom[order]
        """int32 (n,): index of the atom."""
        self.value = value[order]
        """float64 (n,): how strongly the document belongs to the atom."""
        self.code = value[order] if code is None else code[order]
        """float64 (n,): its sparse code on the atom (eq. 2), which may be 0; by default the strength."""

    def of_atom(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Documents and values of one atom, documents rising."""
        start, stop = np.searchsorted(self.atom, [index, index + 1])
        return self.document[start:stop], self.value[start:stop]

    def __len__(self) -> int:
        return len(self.value)


def write_coefficients(coefficients: Coefficients, path: Path) -> None:
    """Write them as Parquet; raises `BundleError` when a strength or a code is not finite."""
    _check_codes(coefficients, path)
    table = pa.table(
        {
            "document": coefficients.document.astype(np.int64),
            "atom": coefficients.atom.astype(np.int32),
            "value": coefficients.value.astype(np.float64),
            "code": coefficients.code.astype(np.float64),
        },
        schema=COEFFICIENTS_SCHEMA.append(_CODE),
    )
    pq.write_table(table, path, compression="zstd")


def read_coefficients(path: Path) -> Coefficients:
    """Read what `write_coefficients` wrote, or the same with float32 values or without codes.

    Raises `BundleError` on another schema, and on values that no writer leaves.
    """
    accepted = {"value": pa.float32(), "code": pa.float32()}
    table = read_parquet(path, COEFFICIENTS_SCHEMA, accepted=accepted, optional=_CODE)
    found = Coefficients(
        table["document"].to_numpy(),
        table["atom"].to_numpy(),
        table["value"].to_numpy().astype(np.float64, copy=False),
        table["code"].to_numpy().astype(np.float64, copy=False) if "code" in table.column_names else None,
    )
    _check_codes(found, path)
    return found


def _check_codes(found: Coefficients, path: Path) -> None:
    for name, values in (("value", found.value), ("code", found.code)):
        if not np.isfinite(values).all():
            raise BundleError(f"{path.name}: a {name} is not a finite number")
    if len(found) and min(found.document.min(), found.atom.min()) < 0:
        raise BundleError(f"{path.name}: a document or an atom is below 0")


def read_parquet(
    path: Path,
    schema: pa.Schema,
    accepted: dict[str, pa.DataType] | None = None,
    optional: pa.Field | None = None,
) -> pa.Table:
    """Read the columns of `schema`, and of an optional field, from a Parquet file; others are left aside.

    `accepted` names a second type for a column. Raises `BundleError` when the file is damaged, a column is
    missing or of another type, or holds nulls where `schema` has none.
    """
    try:
        with pq.ParquetFile(path) as file:
            if optional is not None and optional.name in file.schema_arrow.names:
                schema = schema.append(optional)
            check_columns(path, file.schema_arrow, schema, accepted or {})
            table = file.read(columns=schema.names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path.name} is damaged: {error}") from error
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise BundleError(f"{path.name}: column {field.name!r} holds nulls")
    return table


def check_columns(path: Path, found: pa.Schema, wanted: pa.Schema, accepted: dict[str, pa.DataType]) -> None:
    """Raise `BundleError` unless `found` has every column of `wanted`, once and of its type."""
    for field in wanted:
        types = [other.type for other in found if other.name == field.name]
        if types != [field.type] and types != [accepted.get(field.name)]:
            raise BundleError(f"{path.name}: column {field.name!r} of type {field.type} is missing")
