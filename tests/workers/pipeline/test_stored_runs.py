"""A plan is made about the shards that are stored already."""

from __future__ import annotations

from collections.abc import Iterable

from atomscope.types.bundle import Plan
from atomscope_workers.pipeline.plan import make_plan


class Runs:
    """Stored runs of rows, whatever their batches, or those of one batch size alone."""

    def __init__(self, *runs: list[int], most: int = 99) -> None:
        self.runs, self.most = runs, most

    def counts(self, row: int) -> Iterable[int]:
        return [len(run) for run in self.runs if run[0] == row]

    def holds(self, documents: list[int], batches: list[list[int]]) -> bool:
        return documents in self.runs and max(map(len, batches)) <= self.most


def planned(rows: int, stored: Runs | None, shard_documents: int = 4, step: int = 1) -> list[list[int]]:
    lengths = {row * step: 3 for row in range(rows)}
    plan: Plan = make_plan(
        lengths,
        lengths,
        n_rows=rows * step,
        token_budget=12,
        shard_documents=shard_documents,
        compute_dtype="float32",
        device_kind="cpu",
        stored=stored,
    )
    assert [shard.index for shard in plan.shards] == list(range(len(plan.shards)))
    assert [row for shard in plan.shards for row in shard.documents] == sorted(lengths)
    return [shard.documents for shard in plan.shards]


def test_what_is_stored_of_the_same_data_gives_the_same_plan() -> None:
    fresh = planned(10, None)
    assert [len(run) for run in fresh] == [4, 4, 2]
    assert planned(10, Runs(*fresh)) == fresh


def test_rows_appended_begin_a_new_shard_behind_the_last_short_one() -> None:
    runs = planned(6, None)
    assert planned(9, Runs(*runs)) == [[0, 1, 2, 3], [4, 5], [6, 7, 8]]


def test_a_stored_shard_further_on_is_kept_whole() -> None:
    assert planned(9, Runs([2, 3, 4])) == [[0, 1], [2, 3, 4], [5, 6, 7, 8]]


def test_the_largest_stored_run_is_taken_but_none_larger_than_a_shard() -> None:
    runs = Runs([0, 1], [0, 1, 2], [0, 1, 2, 3, 4])
    assert planned(6, runs) == [[0, 1, 2], [3, 4, 5]]
    assert planned(6, runs, shard_documents=8) == [[0, 1, 2, 3, 4], [5]]
    assert planned(2, Runs([0, 1, 2])) == [[0, 1]]  # it would go past the last row


def test_a_run_of_other_rows_or_batches_is_not_taken() -> None:
    assert planned(6, Runs([0, 1, 3])) == [[0, 1, 2, 3], [4, 5]]
    assert planned(6, Runs([0, 1], most=1)) == [[0, 1, 2, 3], [4, 5]]
    assert planned(6, Runs([0, 1, 2, 3]), step=2) == [[0, 2, 4, 6], [8, 10]]
