"""Atoms of one behaviour are joined, however few their documents, and what is like nothing else is not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from atomscope_workers.pipeline.behaviours import CUT
from atomscope_workers.pipeline.grouping import (
    EXPONENT,
    Grouping,
    Products,
    group_atoms,
    summed_products,
)
from atomscope_workers.pipeline.span import unit_gram, unit_rows
from tests.workers.pipeline.spans import clustered

Table = NDArray[np.float64]
DOCUMENTS = 30


def products(*cosines: list[list[float]] | Table) -> list[Products]:
    """Of atoms of unit sums, of so many documents that what each is to itself does not count."""
    return [Products(np.array(item, dtype=np.float64), np.zeros(len(item))) for item in cosines]


def members(found: Grouping) -> list[list[int]]:
    return [group.tolist() for group in found.groups]


def drawn(count: int, seed: int) -> tuple[Table, torch.Tensor]:
    """Codes (N, K) of atoms that are each at home in one of five clusters, and the clusters' documents."""
    random = np.random.default_rng(seed)
    clusters = random.integers(0, 5, DOCUMENTS)
    rows = random.normal(size=(5, 12))[clusters] + 0.4 * random.normal(size=(DOCUMENTS, 12)) + 0.2
    homes = random.integers(0, 5, count)
    used = (clusters[:, None] == homes) | (random.random((DOCUMENTS, count)) < 0.1)
    return random.random((DOCUMENTS, count)) * used, torch.from_numpy(rows).float()


@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_products_are_those_of_different_documents_alone(count: int, seed: int) -> None:
    codes, rows = drawn(count, seed)
    unit = torch.nn.functional.normalize(rows.double()).numpy()
    scale = np.abs(codes).sum() + 1
    for span in (unit_rows(rows), unit_gram(rows @ rows.T)):
        for found, documents in zip(summed_products(span, codes), (unit, unit - unit.mean(0)), strict=True):
            gram = documents @ documents.T
            expected = codes.T @ (gram - np.diag(gram.diagonal())) @ codes
            np.testing.assert_allclose(found.different, expected, atol=1e-5 * scale)
            same = np.square(codes).T @ gram.diagonal()
            np.testing.assert_allclose(found.same, same, atol=1e-5 * scale)


def test_codes_below_zero_count_as_none() -> None:
    codes, rows = drawn(3, 0)
    span = unit_rows(rows)
    found = summed_products(span, codes - 2 * (codes > 0.5) * codes)
    for one, other in zip(found, summed_products(span, codes * (codes <= 0.5)), strict=True):
        np.testing.assert_allclose(one.different, other.different)


def alike(count: int, seed: int) -> tuple[list[Products], Table]:
    """Two products of random vectors that lean one way, and totals; no two distances are equal."""
    random = np.random.default_rng(seed)
    found = [random.normal(size=(count, 6)) + 0.4 for _ in range(2)]
    return products(*(rows @ rows.T for rows in found)), random.random(count) + 0.05


def reference(given: Sequence[Products], totals: Table, cut: float, most: int) -> set[frozenset[int]]:
    """The same groups from the definition: all distances anew after every join."""
    groups = [[place] for place in range(len(totals))]
    weight = totals / totals.mean()
    highest = 0.0
    while len(groups) > 1:
        gather = np.zeros((len(totals), len(groups)))
        for column, group in enumerate(groups):
            gather[group, column] = 1
        cosines = np.ones((len(groups), len(groups)))
        for item in given:
            different, same = gather.T @ item.different @ gather, gather.T @ item.same
            norms = np.sqrt(np.maximum(different.diagonal(), 0.1 * same).clip(1e-30))
            cosines = np.minimum(cosines, np.clip(different / np.outer(norms, norms), -1, 1))
        shares = gather.T @ weight
        apart = (1 - cosines) * np.minimum(shares[:, None], shares) ** EXPONENT
        np.fill_diagonal(apart, np.inf)
        left, right = np.unravel_index(int(apart.argmin()), apart.shape)
        if len(groups) <= most and max(highest, apart[left, right]) > cut:
            break
        highest = max(highest, float(apart[left, right]))
        groups[left] += groups[right]
        del groups[right]
    return {frozenset(group) for group in groups}


@given(st.integers(2, 14), st.integers(1, 8), st.floats(0.1, 1.2), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_nearest_are_joined_first_and_distances_are_those_of_what_was_joined(
    count: int, most: int, cut: float, seed: int
) -> None:
    given_products, totals = alike(count, seed)
    found = group_atoms(given_products, totals, cut=cut, most=most)
    assert {frozenset(group) for group in members(found)} == reference(given_products, totals, cut, most)
    assert sorted(place for group in members(found) for place in group) == list(range(count))
    assert len(found.groups) <= most
    heights = found.tree[:, 2]
    assert (np.diff(heights) > 0).all()
    assert found.cut >= cut


@given(st.integers(2, 14), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_the_order_of_atoms_changes_no_group(count: int, seed: int) -> None:
    straight_products, totals = alike(count, seed)
    order = np.random.default_rng(seed).permutation(count)
    straight = group_atoms(straight_products, totals, cut=CUT, most=5)
    others = [Products(item.different[order][:, order], item.same[order]) for item in straight_products]
    turned = group_atoms(others, totals[order], cut=CUT, most=5)
    assert {frozenset(order[group].tolist()) for group in turned.groups} == {
        frozenset(group) for group in members(straight)
    }


def test_atoms_of_few_documents_of_one_behaviour_are_alike_though_their_means_are_not() -> None:
    """Two atoms of three documents each share a cluster: most of a mean is its documents' noise."""
    clusters = [0] * 6 + [1] * 3 + [2 + item // 3 for item in range(60)]
    span = unit_rows(clustered(clusters, width=4000, noise=2.5))
    codes = np.zeros((69, 3))
    for atom in range(3):
        codes[3 * atom : 3 * atom + 3, atom] = 1.0
    means = span.combine(torch.from_numpy(codes.T.copy()).float())
    inner = span.inner(means, means)
    assert float(inner[0, 1] / (inner[0, 0] * inner[1, 1]).sqrt()) < 0.35
    found = group_atoms(summed_products(span, codes), codes.sum(0), cut=CUT, most=9)
    assert members(found) == [[0, 1], [2]]


def test_a_fragment_goes_to_its_own_before_two_behaviours_are_made_one() -> None:
    cosines = [[1.0, 0.15, 0.12], [0.15, 1.0, 0.0], [0.12, 0.0, 1.0]]
    assert members(group_atoms(products(cosines), np.array([50.0, 40.0, 1.0]), cut=CUT, most=2)) == [
        [0, 2],
        [1],
    ]
    even = group_atoms(products(cosines), np.array([50.0, 40.0, 45.0]), cut=CUT, most=2)
    assert members(even) == [[0, 1], [2]]


def test_alike_atoms_are_joined_however_few_groups_that_leaves_and_others_only_to_keep_the_limit() -> None:
    cosines = [[1.0, 0.9, 0.1], [0.9, 1.0, 0.1], [0.1, 0.1, 1.0]]
    totals = np.array([1.0, 1.0, 1.0])
    assert members(group_atoms(products(cosines), totals, cut=CUT, most=9)) == [[0, 1], [2]]
    assert members(group_atoms(products(cosines), totals, cut=0.05, most=9)) == [[0], [1], [2]]
    assert members(group_atoms(products(cosines), totals, cut=CUT, most=1)) == [[0, 1, 2]]


def test_of_two_products_the_lesser_cosine_counts() -> None:
    near, far = [[1.0, 0.9], [0.9, 1.0]], [[1.0, 0.1], [0.1, 1.0]]
    for both in (products(near, far), products(far, near)):
        assert members(group_atoms(both, np.ones(2), cut=CUT, most=2)) == [[0], [1]]
    assert members(group_atoms(products(near, near), np.ones(2), cut=CUT, most=2)) == [[0, 1]]


def test_atoms_of_noise_with_a_common_mean_are_not_one_behaviour() -> None:
    rows = torch.randn(60, 400, generator=torch.Generator().manual_seed(0)) + 0.3
    codes = np.zeros((60, 12))
    codes[np.arange(60), np.arange(60) % 12] = 1.0
    found = group_atoms(summed_products(unit_rows(rows), codes), codes.sum(0), cut=CUT, most=20)
    assert len(found.groups) == 12
    forced = group_atoms(summed_products(unit_rows(rows), codes), codes.sum(0), cut=CUT, most=5)
    assert len(forced.groups) == 5


def test_groups_stand_by_falling_total_code() -> None:
    cosines = np.eye(3)
    assert members(group_atoms(products(cosines), np.array([1.0, 5.0, 2.0]), cut=CUT, most=9)) == [
        [1],
        [2],
        [0],
    ]


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_atoms_are_no_tree(count: int) -> None:
    found = group_atoms(products(np.eye(count)), np.ones(count), cut=CUT, most=4)
    assert members(found) == [[place] for place in range(count)]
    assert found.tree.shape == (0, 4)


def test_an_atom_without_a_code_above_zero_stays_by_itself() -> None:
    cosines = np.diag([1.0, 0.0, 0.0])
    assert len(group_atoms(products(cosines), np.array([3.0, 0.0, 0.0]), cut=CUT, most=4).groups) == 3
