"""The plan of an audit: which documents form a shard, and which of a shard run together.

Fixed once and stored. It depends on the documents' lengths and the settings alone, so that whoever runs a
shard runs the same batches in the same order and gets the same bits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np

from atomscope.types.bundle import Plan, ShardPlan

LOSS_SAMPLE = 32
UNEVEN = Fraction(3, 2)
"""Most tokens of a shard, over those of `shard_documents` documents of mean length."""


BATCH_TOKENS = {"cpu": 100, "cuda": 2048}
"""What a batch costs beside its tokens, in tokens: a CPU adds up curvature sums, a GPU launches kernels."""


class StoredRuns(Protocol):
    """Shards that are stored already."""

    def counts(self, row: int) -> Iterable[int]:
        """Sizes of those that begin at a physical row."""
        ...

    def holds(self, documents: list[int], batches: list[list[int]]) -> bool:
        """Whether one of them is what a shard of these rows, in these micro-batches, would be."""
        ...


def make_plan(
    lengths: Mapping[int, int],
    target_counts: Mapping[int, int],
    *,
    n_rows: int,
    token_budget: int,
    shard_documents: int,
    compute_dtype: str,
    device_kind: str,
    gradient_dtype: str = "float32",
    recompute: bool = False,
    stored: StoredRuns | None = None,
) -> Plan:
    """Plan the documents whose tokens and target tokens are given by physical row.

    Shards are runs of `shard_documents` rows in physical order, or of fewer: a run ends before its tokens
    are more than `UNEVEN` times those of as many rows of mean length, so that no shard keeps its worker much
    longer than others do, unless one row is as long alone. But where `stored` has a run, the largest one of
    at most `shard_documents` rows becomes a shard as it is. Within a shard, micro-batches are those of
    `micro_batches`.

    Raises `ValueError` where the two mappings differ in rows, a row is outside `n_rows`, a length is less
    than 1, or a setting is.
    """
    if lengths.keys() != target_counts.keys():
        raise ValueError("lengths and target counts are of different rows")
    if token_budget < 1 or shard_documents < 1:
        raise ValueError("token_budget and shard_documents must be at least 1")
    if any(not 0 <= row < n_rows for row in lengths) or any(length < 1 for length in lengths.values()):
        raise ValueError("a row outside the data set, or a document without tokens")
    rows = sorted(lengths)

    def batches(documents: list[int]) -> list[list[int]]:
        return micro_batches(documents, lengths, token_budget, device_kind)

    def stored_at(start: int) -> list[int] | None:
        if stored is None:
            return None
        counts = sorted(set(stored.counts(rows[start])), reverse=True)
        for count in counts:
            documents = rows[start : start + count]
            if count == len(documents) <= shard_documents and stored.holds(documents, batches(documents)):
                return documents
        return None

    most_tokens = _most_tokens(lengths, shard_documents)

    def run_from(start: int) -> list[int]:
        end, tokens = start + 1, lengths[rows[start]]
        while end < min(len(rows), start + shard_documents) and stored_at(end) is None:
            tokens += lengths[rows[end]]
            if tokens > most_tokens:
                break
            end += 1
        return rows[start:end]

    shards: list[ShardPlan] = []
    start = 0
    while start < len(rows):
        documents = stored_at(start) or run_from(start)
        start += len(documents)
        shards.append(
            ShardPlan(
                index=len(shards),
                documents=documents,
                micro_batches=batches(documents),
                n_tokens=sum(lengths[row] for row in documents),
            )
        )
    return Plan(
        n_rows=n_rows,
        n_documents=len(lengths),
        n_tokens=sum(lengths.values()),
        n_target_tokens=sum(target_counts.values()),
        token_budget=token_budget,
        shards=shards,
        compute_dtype=compute_dtype,
        device_kind=device_kind,
        gradient_dtype=gradient_dtype,
        recompute=recompute,
    )


def _most_tokens(lengths: Mapping[int, int], shard_documents: int) -> int:
    """Of one shard; exact, so that every machine plans alike."""
    return math.floor(UNEVEN * shard_documents * sum(lengths.values()) / max(1, len(lengths)))


def micro_batches(
    documents: list[int], lengths: Mapping[int, int], token_budget: int, device_kind: str
) -> list[list[int]]:
    """Rows from the longest down, cut into batches of at most `token_budget` tokens, padding included.

    A document longer than that is a batch alone; rows of equal length keep their order. Among all such cuts
    it is that of the least padded tokens, a batch more counted as `BATCH_TOKENS` of them.
    """
    rows = sorted(documents, key=lambda row: (-lengths[row], row))
    longest = np.array([lengths[row] for row in rows], dtype=np.int64)
    rest = np.zeros(len(rows) + 1, dtype=np.int64)  # the least cost of the rows from each on
    taken = np.zeros(len(rows), dtype=np.int64)
    for first in reversed(range(len(rows))):
        most = min(len(rows) - first, max(1, token_budget // int(longest[first])))
        costs = longest[first] * np.arange(1, most + 1) + rest[first + 1 : first + 1 + most]
        taken[first] = most - int(costs[::-1].argmin())  # of equal ones the largest batch
        rest[first] = costs[taken[first] - 1] + BATCH_TOKENS[device_kind]
    batches: list[list[int]] = []
    first = 0
    while first < len(rows):
        batches.append(rows[first : first + int(taken[first])])
        first += len(batches[-1])
    return batches


def padded_tokens(batches: Iterable[Sequence[int]], lengths: Mapping[int, int]) -> int:
    """Tokens that the model runs on for these micro-batches, padding included."""
    return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)


def padding_facts(plan: Plan, lengths: Mapping[int, int]) -> dict[str, float]:
    """Tokens that had to be run, those that were, and the share of these that is padding."""
    padded = sum(padded_tokens(shard.micro_batches, lengths) for shard in plan.shards)
    tokens = sum(lengths[row] for shard in plan.shards for row in shard.documents)
    return {"tokens": tokens, "padded_tokens": padded, "share": 1 - tokens / padded}


def loss_sample(shard: ShardPlan) -> list[list[int]]:
    """Micro-batches of the documents whose loss is measured under the base as well.

    `LOSS_SAMPLE` of the shard, evenly spread over its documents by length, or all of a smaller one: enough to
    tell whether the adapter lowers the loss of its data, for an eighth of a forward pass at the default size.
    """
    step = max(1, len(shard.documents) // LOSS_SAMPLE)
    places = itertools.count()
    sampled = [[row for row in batch if next(places) % step == 0] for batch in shard.micro_batches]
    return [batch for batch in sampled if batch]
