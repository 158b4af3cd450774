"""The rows that later stages need, kept from the data set by the first one."""

from __future__ import annotations

import msgspec

ROWS = "work/rows.jsonl"
"""One `StoredRow` a line, of the audited documents in physical order."""


class StoredRow(msgspec.Struct, kw_only=True, frozen=True):
    """What later stages need of a document's row."""

    document: int
    id: str
    messages: list[dict[str, str]]
    """As `DocumentRecord.messages`, made by `Row.stored`; of a plain-text row, turns of the roles `prompt`
    and `completion`, or one of the role `text`."""
