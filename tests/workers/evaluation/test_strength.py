"""The search for the largest strength within a budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomscope.steering.apply import LARGEST
from atomscope_workers.evaluation.strength import LEAST, largest_strength


@given(st.floats(LEAST * 1.1, LARGEST * 0.99))
def test_what_is_found_is_within_the_budget_and_nearly_the_largest(limit: float) -> None:
    asked: list[float] = []

    def within(strength: float) -> bool:
        asked.append(strength)
        return strength <= limit

    found = largest_strength(within)
    assert found is not None
    assert found <= limit <= found * 1.0906
    assert found in asked
    assert len(set(asked)) == len(asked) <= 16


def test_none_is_found_where_the_least_is_beyond_and_the_cap_where_nothing_is() -> None:
    asked: list[float] = []
    assert largest_strength(lambda strength: bool(asked.append(strength))) is None
    assert min(asked) == pytest.approx(LEAST)
    assert largest_strength(lambda strength: True) == LARGEST
