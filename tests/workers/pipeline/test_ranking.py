"""Scores put what stands out first, and no branch of the tree before all others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from atomscope.types.atoms import Evidence
from atomscope.types.hierarchy import Hierarchy, Merge
from atomscope_workers.pipeline.ranking import READ, branches, own_score, ranks, scores


def _prominent(*values: float) -> list[Evidence]:
    return [Evidence(prominence=value) for value in values]


def test_the_own_score_is_prominence_times_stability_of_what_is_no_chance() -> None:
    assert own_score(Evidence(prominence=8.0, q_value=0.05, stability=0.5)) == 4.0
    assert own_score(Evidence(prominence=8.0)) == 8.0
    assert own_score(Evidence(prominence=8.0, q_value=0.06, stability=1.0)) == 0.0
    assert own_score(Evidence(prominence=-0.1)) == 0.0
    assert own_score(Evidence(tightness=0.9)) == 0.0


def test_the_rth_of_a_branch_counts_a_part_of_its_square() -> None:
    found = scores(_prominent(9.0, 10.0, 4.0, 9.0, 3.0), [0, 0, 1, 0, None])
    assert found == [9.0 / 4, 10.0, 4.0, 9.0 / 9, 3.0]
    assert ranks(found, [0.0] * 5, [1] * 5) == [4, 1, 2, 5, 3]


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 4)), max_size=30))
def test_a_branch_keeps_its_order_and_its_best_its_score(items: list[tuple[float, int]]) -> None:
    own, branch = [item[0] for item in items], [item[1] for item in items]
    found = scores(_prominent(*own), branch)
    for name in set(branch):
        members = sorted((item for item, at in enumerate(branch) if at == name), key=lambda item: -own[item])
        assert found[members[0]] == own[members[0]]
        assert [found[item] for item in members] == sorted((found[item] for item in members), reverse=True)


def _chain(count: int, cut: float) -> Hierarchy:
    """A tree in which the first two atoms are joined, then each next one to them."""
    merges = [
        Merge(left=count + at - 1 if at else 0, right=at + 1, height=0.01 * (at + 1), size=at + 2)
        for at in range(count - 1)
    ]
    return Hierarchy(atoms=list(range(count)), merges=merges, cut=cut)


def test_of_no_more_behaviours_than_are_read_each_is_a_branch() -> None:
    assert branches(_chain(READ, 0.0), [[atom] for atom in range(READ)]) == list(range(READ))
    assert branches(Hierarchy(atoms=[], merges=[], cut=0.7), []) == []


def test_of_more_the_nearest_share_a_branch_until_no_more_than_are_read_are_left() -> None:
    count = READ + 5
    found = branches(_chain(count, 0.0), [[atom] for atom in reversed(range(count))])
    assert len(set(found)) == READ
    assert len(set(found[-6:])) == 1
    assert found[0] != found[1] != found[-1]
