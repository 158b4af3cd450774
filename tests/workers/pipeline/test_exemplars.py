"""Exemplars come from every quantile there is, each document once."""

from __future__ import annotations

import pytest

from atomscope_workers.pipeline.exemplars import EACH, quantile_places


def test_a_hundred_documents_show_three_from_the_start_of_each_quarter() -> None:
    assert quantile_places(100) == [
        (1.0, [0, 1, 2]),
        (0.75, [25, 26, 27]),
        (0.5, [50, 51, 52]),
        (0.25, [75, 76, 77]),
    ]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (1, [(1.0, [0])]),
        (2, [(1.0, [0]), (0.5, [1])]),
        (5, [(1.0, [0, 1]), (0.75, [2]), (0.5, [3]), (0.25, [4])]),
    ],
)
def test_few_documents_are_spread_over_the_quantiles(
    count: int, expected: list[tuple[float, list[int]]]
) -> None:
    assert quantile_places(count) == expected


@pytest.mark.parametrize("count", range(1, 60))
def test_no_document_is_shown_twice_and_the_strongest_is_shown(count: int) -> None:
    places = [place for _, part in quantile_places(count) for place in part]
    assert places == sorted(set(places))
    assert places[0] == 0
    assert places[-1] < count
    assert len(places) >= min(count, EACH)
