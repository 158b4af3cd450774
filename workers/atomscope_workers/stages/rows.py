"""The rows that later stages need, kept from the data set by the first one."""

from __future__ import annotations

import os
import weakref
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from atomscope.store import StoreError

ROWS = "work/rows.jsonl"
"""One `StoredRow` a line, of the audited documents in physical order."""


class StoredRow(msgspec.Struct, kw_only=True, frozen=True):
    """What later stages need of a document's row."""

    document: int
    id: str
    messages: list[dict[str, str]]
    """As `DocumentRecord.messages`, made by `Row.stored`; of a plain-text row, turns of the roles `prompt`
    and `completion`, or one of the role `text`."""


class _Numbered(msgspec.Struct):
    document: int


class StoredRows(Mapping[int, StoredRow]):
    """The rows of a file by physical row, in its order; 16 bytes of each are held, and its text is read.

    Looking one up raises `StoreError` where it is damaged.
    """

    def __init__(self, path: Path) -> None:
        """Raises `ValueError` where rows do not rise."""
        self._documents = array("q")
        self._starts = array("q", [0])
        with path.open("rb") as lines:
            for line in lines:
                document = msgspec.json.decode(line, type=_Numbered).document
                if self._documents and document <= self._documents[-1]:
                    raise ValueError(f"row {document} comes after row {self._documents[-1]}")
                self._documents.append(document)
                self._starts.append(self._starts[-1] + len(line))
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self._documents)

    def __iter__(self) -> Iterator[int]:
        return iter(self._documents)

    def __getitem__(self, document: int) -> StoredRow:
        place = bisect_left(self._documents, document)
        if place == len(self) or self._documents[place] != document:
            raise KeyError(document)
        start, end = self._starts[place], self._starts[place + 1]
        try:
            return msgspec.json.decode(os.pread(self._file, end - start, start), type=StoredRow)
        except ValueError as error:  # of `msgspec`, or of text that is not UTF-8; others mean much by it
            raise StoreError(f"{ROWS} is damaged: document {document}: {error}") from error
