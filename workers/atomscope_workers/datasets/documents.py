"""Tokenised documents, and the file in which `validate` hands them to the shards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file


@dataclass(frozen=True)
class TokenizedDocument:
    """One document as the model sees it."""

    document: int
    """Physical row of the data set."""
    input_ids: NDArray[np.int32]
    """Shape (length,)."""
    target_mask: NDArray[np.bool_]
    """Shape (length,): True where the token is a target, predicted under the loss. Never True at 0."""

    @property
    def read(self) -> int:
        """Tokens that a target's prediction depends on: those before the last target; 0 without a target."""
        return _before_last_target(self.target_mask)


class TokenCounts(NamedTuple):
    """Of one document."""

    tokens: int
    targets: int
    read: int
    """`TokenizedDocument.read`."""


def save_tokens(documents: list[TokenizedDocument], path: Path) -> None:
    """Write `documents` as flat safetensors: `document`, `offsets` (n + 1), `input_ids`, `target_mask`."""
    lengths = [len(item.input_ids) for item in documents]
    save_file(
        {
            "document": np.array([item.document for item in documents], dtype=np.int64),
            "offsets": np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
            "input_ids": np.concatenate([item.input_ids for item in documents]).astype(np.int32),
            "target_mask": np.concatenate([item.target_mask for item in documents]).astype(np.uint8),
        },
        path,
    )


def load_tokens(path: Path) -> dict[int, TokenizedDocument]:
    """Read what `save_tokens` wrote, by physical row."""
    arrays = load_file(path)
    offsets = arrays["offsets"]
    documents: dict[int, TokenizedDocument] = {}
    for position, row in enumerate(arrays["document"].tolist()):
        part = slice(int(offsets[position]), int(offsets[position + 1]))
        documents[row] = TokenizedDocument(
            document=row,
            input_ids=arrays["input_ids"][part],
            target_mask=arrays["target_mask"][part].astype(np.bool_),
        )
    return documents


def token_counts(path: Path) -> dict[int, TokenCounts]:
    """Counts of what `save_tokens` wrote, by physical row."""
    with safe_open(path, "numpy") as arrays:
        offsets: list[int] = arrays.get_tensor("offsets").tolist()
        mask = arrays.get_tensor("target_mask")
        documents: list[int] = arrays.get_tensor("document").tolist()
    masks = (mask[start:stop] for start, stop in pairwise(offsets))
    return {
        row: TokenCounts(len(own), int(np.count_nonzero(own)), _before_last_target(own))
        for row, own in zip(documents, masks, strict=True)
    }


def _before_last_target(mask: NDArray[Any]) -> int:
    after = int(mask[::-1].argmax()) if len(mask) else 0
    last = len(mask) - 1 - after
    return last if last >= 0 and mask[last] else 0


def load_some(path: Path, rows: Iterable[int]) -> list[TokenizedDocument]:
    """The documents at some physical rows, in their order, of what `save_tokens` wrote."""
    with safe_open(path, "numpy") as arrays:
        offsets = arrays.get_tensor("offsets")
        places = {row: place for place, row in enumerate(arrays.get_tensor("document").tolist())}
        ids, mask = arrays.get_slice("input_ids"), arrays.get_slice("target_mask")
        found: list[TokenizedDocument] = []
        for row in rows:
            start, stop = int(offsets[places[row]]), int(offsets[places[row] + 1])
            found.append(TokenizedDocument(row, ids[start:stop], mask[start:stop].astype(np.bool_)))
    return found
