"""The tree that is kept gives back the groups that were cut from it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atomscope.types.hierarchy import Hierarchy
from atomscope_workers.pipeline.behaviours import CUT
from atomscope_workers.pipeline.grouping import Grouping, Products, group_atoms
from atomscope_workers.pipeline.hierarchy import hierarchy


def _products(count: int, seed: int, decimals: int) -> list[Products]:
    """Cosines of random vectors, rounded so that many are equal: ties are where a cut could go astray."""
    rows = np.random.default_rng(seed).normal(size=(count, 3)) + 0.5
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return [Products(np.round(rows @ rows.T, decimals), np.zeros(count))]


def _grouped(count: int, seed: int, decimals: int, most: int) -> tuple[list[int], Grouping, Hierarchy]:
    random = np.random.default_rng(seed)
    atoms = random.permutation(3 * count)[:count].tolist()
    grouping = group_atoms(_products(count, seed, decimals), random.random(count), cut=CUT, most=most)
    return atoms, grouping, hierarchy(atoms, grouping)


@given(
    count=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
    decimals=st.integers(1, 6),
    most=st.integers(1, 12),
)
@settings(max_examples=150, deadline=None)
def test_the_stored_cut_gives_the_groups_and_every_atom_is_once_in_a_tree_whose_heights_rise(
    count: int, seed: int, decimals: int, most: int
) -> None:
    atoms, grouping, tree = _grouped(count, seed, decimals, most)
    wanted = {frozenset(atoms[place] for place in group) for group in grouping.groups}
    assert {frozenset(group) for group in tree.groups()} == wanted
    assert tree.atoms == atoms
    sides = [side for merge in tree.merges for side in (merge.left, merge.right)]
    assert sorted(sides) == list(range(max(2 * count - 2, 0)))
    heights = [merge.height for merge in tree.merges]
    assert heights == sorted(heights)
    assert [sorted(group) for group in tree.groups(2.0)] == ([sorted(atoms)] if atoms else [])


def test_a_height_is_how_far_apart_two_even_sides_lay() -> None:
    cosines = np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.1], [0.1, 0.1, 1.0]])
    tree = hierarchy([4, 7, 2], group_atoms([Products(cosines, np.zeros(3))], np.ones(3), cut=CUT, most=9))
    assert tree.cut == CUT
    # The sum of the first two has a norm of sqrt(3.8), and a product of 0.2 with the third.
    assert [merge.height for merge in tree.merges] == pytest.approx([0.1, 1 - 0.2 / np.sqrt(3.8)])
    forced = hierarchy([4, 7, 2], group_atoms([Products(cosines, np.zeros(3))], np.ones(3), cut=CUT, most=1))
    assert forced.cut == forced.merges[-1].height
