"""A token budget is found by doubling up and bisecting down, on a device that is made to run out of memory.

No GPU is at hand: what runs out here is a function that raises as the allocator of one would.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atomscope_workers.pipeline.batches import collate
from atomscope_workers.pipeline.budget import (
    LEAST,
    PRECISION,
    STEP,
    largest_budget,
    probe_documents,
    round_budget,
)

MOST = 2**17


def limited(limit: int, tried: list[int] | None = None):
    def attempt(tokens: int) -> int:
        if tried is not None:
            tried.append(tokens)
        if tokens > limit:
            raise torch.OutOfMemoryError(f"{tokens} tokens do not fit")
        return 1000 * tokens

    return attempt


@given(st.integers(LEAST, 2 * MOST))
def test_the_largest_budget_that_fits_is_found_within_its_precision(limit: int) -> None:
    tried: list[int] = []
    found = largest_budget(limited(limit, tried), most=MOST)
    assert found is not None
    assert found <= min(limit, MOST)
    assert found == MOST or limit - found <= max(STEP, found // PRECISION) + STEP
    assert found == LEAST or found % STEP == 0
    assert len(tried) == len(set(tried)) <= 16  # each budget once


@given(st.integers(LEAST, MOST), st.integers(1, 2000))
def test_a_host_is_never_asked_for_more_than_there_is_room_for(limit: int, bytes_a_token: int) -> None:
    """What one token takes is known from the budgets that fitted; the least alone is tried blindly."""
    tried: list[int] = []

    def attempt(tokens: int) -> int:
        tried.append(tokens)
        return tokens * bytes_a_token

    room = limit * bytes_a_token
    found = largest_budget(attempt, most=MOST, room=lambda: room)
    assert found is not None
    assert found <= limit
    assert all(tokens * bytes_a_token <= room for tokens in tried if tokens > LEAST)


def test_nothing_is_found_where_the_least_does_not_fit() -> None:
    assert largest_budget(limited(LEAST - 1), most=MOST) is None
    assert largest_budget(lambda tokens: 10**9, most=MOST, room=lambda: 10**6) is None


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def broken(tokens: int) -> int:
        raise RuntimeError(f"broken at {tokens}")

    with pytest.raises(RuntimeError, match="broken at 256"):
        largest_budget(broken, most=MOST)


@pytest.mark.parametrize(("tokens", "length", "count"), [(512, 100, 5), (512, 600, 1), (10**6, 8, 32)])
def test_probes_fill_the_budget_with_targets_but_never_a_shard(tokens: int, length: int, count: int) -> None:
    documents = probe_documents(tokens, length, 61, most=32)
    batch = collate(documents, torch.device("cpu"))
    assert batch.input_ids.shape == (count, length)
    assert len(batch.targets) == count * length
    assert int(batch.input_ids.max()) < 61


@given(st.integers(LEAST, 2 * MOST))
def test_a_rounded_budget_is_one_of_two_an_octave_and_never_above_what_fits(found: int) -> None:
    rounded = round_budget(found)
    assert found * 2 / 3 < rounded <= found
    assert rounded in {base * 2**power for base in (2, 3) for power in range(20)}


def test_no_budget_is_rounded_below_the_least() -> None:
    assert round_budget(LEAST - 1) == LEAST
