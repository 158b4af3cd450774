"""The documents of an atom or a behaviour in their order, their text read for one page only."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from atomscope.bundle import ACTIVE, Bundle, layout
from atomscope.errors import BundleError
from atomscope.types.atoms import Behaviour
from atomscope.types.resources import DocumentMatch

COLUMNS = ["document", "id", "messages", "n_tokens", "n_target_tokens", "loss"]
BATCH = 4096
"""Rows of the documents' table that are held at a time."""


class RankedDocuments:
    """Documents of an atom or a behaviour, strongest first."""

    def __init__(self, bundle: Bundle, rows: list[int], values: list[float]) -> None:
        self._bundle = bundle
        self.rows = rows
        """Physical rows of the data set."""
        self._values = dict(zip(rows, values, strict=True))

    def texts(self, rows: list[int]) -> list[DocumentMatch]:
        """These documents with their text, in this order.

        The table is read in batches, so that a large data set is never in memory whole.
        """
        found: dict[int, dict[str, Any]] = {}
        wanted = pa.array(rows, pa.int64())
        with pq.ParquetFile(self._bundle.file(layout.DOCUMENTS)) as table:
            for batch in table.iter_batches(BATCH, columns=COLUMNS) if rows else ():
                mask = pc.is_in(batch["document"], wanted)  # pyright: ignore[reportAttributeAccessIssue]
                found.update((row["document"], row) for row in batch.filter(mask).to_pylist())
                if len(found) == len(rows):
                    break
        missing = [row for row in rows if row not in found]
        if missing:
            raise BundleError(f"the bundle names document {missing[0]}, which is not listed")
        return [msgspec.convert(found[row] | {"value": self._values[row]}, DocumentMatch) for row in rows]


def document_matches(bundle: Bundle, atom: int, sign: Literal["positive", "negative"]) -> RankedDocuments:
    """Rank the documents of an atom whose code is active and of this sign."""
    rows, values = bundle.coefficients.of_atom(atom)
    signed = values if sign == "positive" else -values
    active = np.flatnonzero(signed > ACTIVE)
    order = active[np.lexsort((rows[active], -signed[active]))]
    return RankedDocuments(bundle, rows[order].tolist(), values[order].tolist())


def behaviour_documents(bundle: Bundle, behaviour: Behaviour) -> RankedDocuments:
    """The documents of a behaviour in their order."""
    members = behaviour.documents
    return RankedDocuments(
        bundle, [member.document for member in members], [member.strength for member in members]
    )
