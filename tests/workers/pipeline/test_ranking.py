"""Scores put first what stands out, and lies far from what stands out more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomscope.types.atoms import Evidence
from atomscope.types.hierarchy import Hierarchy, Merge
from atomscope_workers.pipeline.ranking import own_score, ranks, scores


def _prominent(*values: float) -> list[Evidence]:
    return [Evidence(prominence=value) for value in values]


def test_the_own_score_is_prominence_times_stability_of_what_is_no_chance() -> None:
    assert own_score(Evidence(prominence=8.0, q_value=0.05, stability=0.5)) == 4.0
    assert own_score(Evidence(prominence=8.0)) == 8.0
    assert own_score(Evidence(prominence=8.0, q_value=0.06, stability=1.0)) == 0.0
    assert own_score(Evidence(prominence=-0.1)) == 0.0
    assert own_score(Evidence(tightness=0.9)) == 0.0


def _tree(count: int, *merges: tuple[int, int, float]) -> Hierarchy:
    """A tree over atoms 0, 10, 20 and so on."""
    sizes = [1] * count
    found: list[Merge] = []
    for left, right, height in merges:
        sizes.append(sizes[left] + sizes[right])
        found.append(Merge(left=left, right=right, height=height, size=sizes[-1]))
    return Hierarchy(atoms=[10 * item for item in range(count)], merges=found, cut=0.0)


def test_each_counts_by_the_square_of_how_far_it_lies_from_one_that_stands_out_more() -> None:
    tree = _tree(4, (0, 1, 0.2), (2, 4, 0.4), (3, 5, 0.8))
    found = scores(_prominent(9.0, 10.0, 4.0, 9.5), [[0], [10], [20], [30]], tree)
    # The second is nowhere joined to a higher one; the others to it, or to what holds it.
    assert found == pytest.approx([9.0 / 16, 10.0, 4.0 / 4, 9.5], rel=1e-12)
    assert ranks(found, [0.0] * 4, [1] * 4) == [4, 1, 3, 2]


def test_the_atoms_of_one_group_are_no_others_to_it() -> None:
    tree = _tree(4, (0, 1, 0.2), (2, 3, 0.3), (4, 5, 0.5))
    assert scores(_prominent(6.0, 7.0), [[0, 10], [30, 20]], tree) == [6.0, 7.0]


def test_what_is_not_in_the_tree_counts_in_full() -> None:
    tree = _tree(2, (0, 1, 0.5))
    assert scores(_prominent(1.0, 3.0, 2.0), [[0], [5], [10]], tree) == [1.0, 3.0, 2.0]
    assert scores(_prominent(3.0), [[7]], Hierarchy(atoms=[], merges=[], cut=0.7)) == [3.0]


def test_of_equals_the_first_counts_in_full() -> None:
    tree = _tree(3, (0, 1, 0.3), (2, 3, 0.6))
    assert scores(_prominent(2.0, 2.0, 2.0), [[0], [10], [20]], tree) == [2.0, 0.5, 2.0]


@given(st.lists(st.floats(0, 20), min_size=2, max_size=30), st.data())
def test_no_score_is_above_its_own_and_the_highest_keeps_it(own: list[float], data: st.DataObject) -> None:
    count = len(own)
    left = list(range(count))
    merges: list[tuple[int, int, float]] = []
    while len(left) > 1:
        sides = [left.pop(data.draw(st.integers(0, len(left) - 1))) for _ in range(2)]
        left.append(count + len(merges))
        merges.append((sides[0], sides[1], 0.1 * (len(merges) + 1)))
    found = scores(_prominent(*own), [[10 * item] for item in range(count)], _tree(count, *merges))
    assert all(0 <= score <= mine for score, mine in zip(found, own, strict=True))
    assert max(found) == max(own)
