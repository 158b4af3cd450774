"""Tokenised documents, and the file in which `validate` hands them to the shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file


@dataclass(frozen=True)
class TokenizedDocument:
    """One document as the model sees it."""

    document: int
    """Physical row of the data set."""
    input_ids: NDArray[np.int32]
    """Shape (length,)."""
    target_mask: NDArray[np.bool_]
    """Shape (length,): True where the token is a target, predicted under the loss. Never True at 0."""
    least: int = 0
    """Tokens that are run whatever the targets, by a model that reads a document by its length."""

    @property
    def read(self) -> int:
        """Tokens that are run: all before the last target, and `least` of them; 0 without a target.

        What follows is seen by no prediction under causal attention.
        """
        return _read(self.target_mask, self.least)


class TokenCounts(NamedTuple):
    """Of one document."""

    tokens: int
    targets: int
    read: int
    """`TokenizedDocument.read`."""


def save_tokens(documents: list[TokenizedDocument], path: Path) -> None:
    """Write flat safetensors: `document`, `offsets` (n + 1), `input_ids`, `target_mask` and `least`."""
    lengths = [len(item.input_ids) for item in documents]
    save_file(
        {
            "document": np.array([item.document for item in documents], dtype=np.int64),
            "offsets": np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
            "input_ids": np.concatenate([item.input_ids for item in documents]).astype(np.int32),
            "target_mask": np.concatenate([item.target_mask for item in documents]).astype(np.uint8),
            "least": np.array([item.least for item in documents], dtype=np.int64),
        },
        path,
    )


def load_tokens(path: Path) -> dict[int, TokenizedDocument]:
    """Read what `save_tokens` wrote, by physical row."""
    with safe_open(path, "numpy") as arrays:
        rows = arrays.get_tensor("document").tolist()
        ids, mask = arrays.get_tensor("input_ids"), arrays.get_tensor("target_mask")
        return {item.document: item for item in _documents(arrays, ids, mask, rows)}


def load_some(path: Path, rows: Iterable[int]) -> list[TokenizedDocument]:
    """The documents at some physical rows, in their order, of what `save_tokens` wrote."""
    with safe_open(path, "numpy") as arrays:
        ids, mask = arrays.get_slice("input_ids"), arrays.get_slice("target_mask")
        return list(_documents(arrays, ids, mask, rows))


def token_counts(path: Path) -> dict[int, TokenCounts]:
    """Counts of what `save_tokens` wrote, by physical row."""
    with safe_open(path, "numpy") as arrays:
        mask = arrays.get_tensor("target_mask")
        documents: list[int] = arrays.get_tensor("document").tolist()
        spans, least = pairwise(arrays.get_tensor("offsets").tolist()), _least(arrays)
    masks = (mask[start:stop] for start, stop in spans)
    return {
        row: TokenCounts(len(own), int(np.count_nonzero(own)), _read(own, at_least))
        for row, own, at_least in zip(documents, masks, least, strict=True)
    }


def _documents(
    arrays: Any,  # noqa: ANN401
    ids: Any,  # noqa: ANN401
    mask: Any,  # noqa: ANN401
    rows: Iterable[int],
) -> Iterator[TokenizedDocument]:
    """Of an open file, its ids and mask whole or to be sliced."""
    offsets, least = arrays.get_tensor("offsets"), _least(arrays)
    places = {row: place for place, row in enumerate(arrays.get_tensor("document").tolist())}
    for row in rows:
        place = places[row]
        part = slice(int(offsets[place]), int(offsets[place + 1]))
        yield TokenizedDocument(row, ids[part], mask[part].astype(np.bool_), least[place])


def _least(arrays: Any) -> list[int]:  # noqa: ANN401
    """`least` of every document; of a bundle from before there was any, all of its tokens were run."""
    if "least" in arrays.keys():  # noqa: SIM118  (it can be asked for its keys alone)
        return arrays.get_tensor("least").tolist()
    return np.diff(arrays.get_tensor("offsets")).tolist()


def _read(mask: NDArray[Any], least: int) -> int:
    after = int(mask[::-1].argmax()) if len(mask) else 0
    last = len(mask) - 1 - after
    return max(last, least) if last >= 0 and mask[last] else 0
