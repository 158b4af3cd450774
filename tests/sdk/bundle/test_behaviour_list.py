"""A list of behaviours sorts by what is measured of each, and tells what it sorts by."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from atomscope.bundle import BehaviourAttributes, BehaviourList
from atomscope.bundle.behaviour_list import SortKey
from tests.sdk.bundle.golden_bundle import BEHAVIOURS


def behaviour(index: int, rank: int, **changes: Any) -> BehaviourAttributes:
    return BehaviourAttributes(msgspec.structs.replace(BEHAVIOURS[0], index=index, rank=rank, **changes))


FOUND = BehaviourList(
    [
        behaviour(7, 1, score=0.9, coherence=0.2, n_documents=4, share=0.1),
        behaviour(0, 2, score=0.5, coherence=0.5, n_documents=9, share=0.3),
        behaviour(3, 3, score=0.4, coherence=0.5, n_documents=2, share=0.2),
    ]
)


def indices(behaviours: BehaviourList[BehaviourAttributes]) -> list[int]:
    return [found.index for found in behaviours]


@pytest.mark.parametrize(
    ("key", "rising", "falling"),
    [
        ("rank", [7, 0, 3], [3, 0, 7]),
        ("index", [0, 3, 7], [7, 3, 0]),
        ("score", [3, 0, 7], [7, 0, 3]),
        ("coherence", [7, 0, 3], [0, 3, 7]),
        ("n_documents", [3, 7, 0], [0, 7, 3]),
        ("share", [7, 3, 0], [0, 3, 7]),
    ],
)
def test_equal_behaviours_stay_in_order_of_rank_both_ways(
    key: Any, rising: list[int], falling: list[int]
) -> None:
    assert indices(FOUND.sort_by(key)) == rising
    assert indices(FOUND.sort_by(key, descending=True)) == falling


def test_a_behaviour_says_what_its_record_does() -> None:
    found = behaviour(1, 1, energy_retained=0.25)
    assert (found.energy_retained, found.coherence) == (0.25, found.behaviour.coherence)


def test_another_sort_key_is_refused_with_those_that_are_taken() -> None:
    with pytest.raises(ValueError, match=f"{', '.join(get_args(SortKey))}, not 'n_active'"):
        FOUND.sort_by("n_active")  # type: ignore[arg-type]
