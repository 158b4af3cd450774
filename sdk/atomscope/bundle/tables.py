"""`atoms/coefficients.parquet`: the sparse codes, one row for each that is not zero."""

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


class Coefficients:
    """Sparse codes in coordinate form, sorted by atom, then document."""

    def __init__(
        self, document: NDArray[np.int64], atom: NDArray[np.int32], value: NDArray[np.float64]
    ) -> None:
        order = np.lexsort((document, atom))
        self.document = document[order]
        """int64 (n,): physical row of the data set."""
        self.atom = atom[order]
        """int32 (n,): index of the atom."""
        self.value = value[order]
        """float64 (n,)."""

    def of_atom(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Documents and values of one atom, documents rising."""
        start, stop = np.searchsorted(self.atom, [index, index + 1])
        return self.document[start:stop], self.value[start:stop]

    def __len__(self) -> int:
        return len(self.value)


def write_coefficients(coefficients: Coefficients, path: Path) -> None:
    """Write the codes as Parquet."""
    table = pa.table(
        {
            "document": coefficients.document.astype(np.int64),
            "atom": coefficients.atom.astype(np.int32),
            "value": coefficients.value.astype(np.float64),
        },
        schema=COEFFICIENTS_SCHEMA,
    )
    pq.write_table(table, path, compression="zstd")


def read_coefficients(path: Path) -> Coefficients:
    """Read what `write_coefficients` wrote; raises `BundleError` on another schema."""
    table = read_parquet(path, COEFFICIENTS_SCHEMA)
    return Coefficients(table["document"].to_numpy(), table["atom"].to_numpy(), table["value"].to_numpy())


def read_parquet(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a Parquet file of exactly `schema` (column order and metadata aside); raises `BundleError`."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise BundleError(f"{path.name} is damaged: {error}") from error
    for field in schema:
        if field.name not in table.column_names or table.schema.field(field.name).type != field.type:
            raise BundleError(f"{path.name}: column {field.name!r} of type {field.type} is missing")
    return table.select(schema.names)
