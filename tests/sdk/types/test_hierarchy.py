"""A tree over atoms is read only if it is one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from atomscope.errors import UsageError
from atomscope.types.hierarchy import Hierarchy

TREE: dict[str, Any] = {
    "atoms": [7, 2, 5],
    "merges": [
        {"left": 0, "right": 2, "height": 0.25, "size": 2},
        {"left": 1, "right": 3, "height": 0.75, "size": 3},
    ],
    "cut": 0.5,
}


def _read(**changes: Any) -> Hierarchy:
    return msgspec.convert({**TREE, **changes}, Hierarchy)


def _merges(place: int, **changes: Any) -> list[dict[str, Any]]:
    return [{**merge, **changes} if at == place else merge for at, merge in enumerate(TREE["merges"])]


def test_atoms_are_grouped_by_the_merges_up_to_a_height() -> None:
    tree = _read()
    assert tree.groups() == [[2], [5, 7]]
    assert tree.groups(0.25) == [[2], [5, 7]]
    assert tree.groups(0.2) == [[2], [5], [7]]
    assert tree.groups(2.0) == [[2, 5, 7]]
    assert _read(atoms=[], merges=[]).groups() == []
    assert _read(atoms=[3], merges=[]).groups() == [[3]]


@pytest.mark.parametrize("height", [float("nan"), float("inf"), -0.1, 2.1])
def test_a_height_that_is_none_is_refused(height: float) -> None:
    with pytest.raises(UsageError, match=r"between 0 and 2 is expected, not"):
        _read().groups(height)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"atoms": [7, 2, 2]}, "listed twice"),
        ({"merges": TREE["merges"][:1]}, "3 atoms take 2 merges, not 1"),
        ({"atoms": []}, "0 atoms take 0 merges"),
        ({"merges": _merges(0, right=0)}, "node 3 joins 0"),
        ({"merges": _merges(0, left=3)}, "node 3 joins 3"),
        ({"merges": _merges(0, left=-1)}, "node 3 joins -1"),
        ({"merges": _merges(1, left=0)}, "node 4 joins 0"),
        ({"merges": _merges(1, size=2)}, "does not hold 2 atoms"),
        ({"merges": _merges(1, height=0.1)}, "node 4 lies at 0.1"),
        ({"merges": _merges(1, height=float("nan"))}, "node 4 lies at nan"),
        ({"merges": _merges(1, height=float("inf"))}, "node 4 lies at inf"),
        ({"cut": float("nan")}, "the cut is at nan"),
    ],
)
def test_what_is_no_tree_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=told):
        _read(**changes)
