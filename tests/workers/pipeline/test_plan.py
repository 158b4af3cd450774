"""Shards are runs of rows, even in tokens, and within one the batches keep to their budget."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from atomscope.types.bundle import Plan
from atomscope_workers.pipeline.plan import BATCH_TOKENS, make_plan, micro_batches, padded_tokens

LENGTHS = st.lists(st.integers(1, 2000), min_size=1, max_size=80)


def planned(lengths: list[int], shard_documents: int, token_budget: int = 2048) -> Plan:
    by_row = dict(enumerate(lengths))
    return make_plan(
        by_row,
        by_row,
        n_rows=len(lengths),
        token_budget=token_budget,
        shard_documents=shard_documents,
        compute_dtype="float32",
        device_kind="cpu",
    )


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, shard_documents=st.integers(1, 90))
def test_no_shard_has_half_as_many_tokens_again_as_its_documents_on_average(
    lengths: list[int], shard_documents: int
) -> None:
    plan = planned(lengths, shard_documents)
    assert [row for shard in plan.shards for row in shard.documents] == list(range(len(lengths)))
    mean = sum(lengths) / len(lengths)
    for shard in plan.shards:
        assert len(shard.documents) <= shard_documents
        assert shard.n_tokens == sum(lengths[row] for row in shard.documents)
        assert len(shard.documents) == 1 or shard.n_tokens <= 1.5 * shard_documents * mean


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, shard_documents=st.integers(1, 90))
def test_a_shard_ends_only_where_the_next_document_is_too_much(
    lengths: list[int], shard_documents: int
) -> None:
    plan, mean = planned(lengths, shard_documents), sum(lengths) / len(lengths)
    for shard, following in zip(plan.shards, plan.shards[1:], strict=False):
        with_next = shard.n_tokens + lengths[following.documents[0]]
        assert len(shard.documents) == shard_documents or with_next > 1.5 * shard_documents * mean


def test_documents_sorted_by_length_do_not_make_one_shard_long() -> None:
    lengths = [20] * 900 + [2000] * 100
    plan = planned(lengths, 100)
    assert max(shard.n_tokens for shard in plan.shards) <= 1.5 * sum(lengths) / 10
    assert 10 < len(plan.shards) < 20


def test_documents_of_like_lengths_fill_their_shards() -> None:
    plan = planned([90, 110] * 50, 20)
    assert [len(shard.documents) for shard in plan.shards] == [20] * 5


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, token_budget=st.integers(1, 3000))
def test_batches_hold_every_document_of_their_shard_once_within_the_budget(
    lengths: list[int], token_budget: int
) -> None:
    for shard in planned(lengths, 30, token_budget).shards:
        assert sorted(row for batch in shard.micro_batches for row in batch) == shard.documents
        for batch in shard.micro_batches:
            assert len(batch) == 1 or max(lengths[row] for row in batch) * len(batch) <= token_budget


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=9), token_budget=st.integers(1, 1500))
def test_no_other_cut_of_the_sorted_documents_costs_less(lengths: list[int], token_budget: int) -> None:
    rows = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    by_row = dict(enumerate(lengths))

    def cost(batches: list[list[int]]) -> int:
        return padded_tokens(batches, by_row) + BATCH_TOKENS["cpu"] * len(batches)

    def cuts() -> Iterator[list[list[int]]]:
        for inner in itertools.product([False, True], repeat=len(rows) - 1):
            ends = [place + 1 for place, cut in enumerate(inner) if cut] + [len(rows)]
            batches = [rows[start:end] for start, end in zip([0, *ends], ends, strict=False)]
            if all(len(batch) == 1 or lengths[batch[0]] * len(batch) <= token_budget for batch in batches):
                yield batches

    found = micro_batches(list(by_row), by_row, token_budget, "cpu")
    assert [row for batch in found for row in batch] == rows
    assert cost(found) == min(cost(batches) for batches in cuts())


def test_a_batch_more_is_worth_less_padding_on_a_cpu_than_on_a_gpu() -> None:
    lengths = dict(enumerate([400, 390, 50]))
    assert micro_batches(list(lengths), lengths, 2048, "cpu") == [[0, 1], [2]]
    assert micro_batches(list(lengths), lengths, 2048, "cuda") == [[0, 1, 2]]
