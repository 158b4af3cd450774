"""Atoms of one behaviour are joined, however few their documents, and what is like nothing else is not."""

from __future__ import annotations

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


def products(cosines: list[list[float]] | Table) -> Products:
    """Of atoms of unit sums, of so many documents that what each is to itself does not count."""
    found = np.array(cosines, dtype=np.float64)
    return Products(found, np.zeros(len(found)))


def members(found: Grouping) -> list[list[int]]:
    return [group.tolist() for group in found.groups]


def drawn(count: int, seed: int) -> tuple[Table, torch.Tensor]:
    """Codes (N, K), some of them 0, and documents that have something in common."""
    random = np.random.default_rng(seed)
    codes = random.random((DOCUMENTS, count)) * (random.random((DOCUMENTS, count)) < 0.4)
    return codes, torch.from_numpy(random.normal(size=(DOCUMENTS, 8)) + 0.4).float()


@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_products_are_those_of_different_documents_alone(count: int, seed: int) -> None:
    codes, rows = drawn(count, seed)
    unit = torch.nn.functional.normalize(rows.double()).numpy()
    gram = unit @ unit.T
    expected = codes.T @ (gram - np.eye(DOCUMENTS)) @ codes
    scale = np.abs(codes).sum() + 1
    for span in (unit_rows(rows), unit_gram(rows @ rows.T)):
        found = summed_products(span, codes)
        np.testing.assert_allclose(found.different, expected, atol=1e-5 * scale)
        np.testing.assert_allclose(found.same, np.square(codes).sum(0), rtol=1e-5)


def test_codes_below_zero_count_as_none() -> None:
    codes, rows = drawn(3, 0)
    span = unit_rows(rows)
    found = summed_products(span, codes - 2 * (codes > 0.5) * codes)
    np.testing.assert_allclose(found.different, summed_products(span, codes * (codes <= 0.5)).different)


def reference(given: Products, totals: Table, cut: float, most: int) -> set[frozenset[int]]:
    """The same groups from the definition: all distances anew after every join."""
    groups = [[place] for place in range(len(totals))]
    weight = totals / totals.mean()
    highest = 0.0
    while len(groups) > 1:
        gather = np.zeros((len(totals), len(groups)))
        for column, group in enumerate(groups):
            gather[group, column] = 1
        different, same = gather.T @ given.different @ gather, gather.T @ given.same
        norms = np.sqrt(np.maximum(different.diagonal(), 0.1 * same).clip(1e-30))
        cosines = np.clip(different / np.outer(norms, norms), -1, 1)
        shares = gather.T @ weight
        apart = (1 - cosines) * np.minimum(shares[:, None], shares) ** EXPONENT
        np.fill_diagonal(apart, np.inf)
        left, right = np.unravel_index(int(apart.argmin()), apart.shape)
        if len(groups) <= most and apart[left, right] > max(cut, highest):
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
    codes, rows = drawn(count, seed)
    given_products, totals = summed_products(unit_rows(rows), codes), codes.sum(0) + 0.01
    found = group_atoms(given_products, totals, cut=cut, most=most)
    assert {frozenset(group) for group in members(found)} == reference(given_products, totals, cut, most)
    assert sorted(place for group in members(found) for place in group) == list(range(count))
    assert len(found.groups) <= most
    heights = found.tree[:, 2]
    assert (np.diff(heights) >= 0).all()
    assert found.cut >= cut


@given(st.integers(2, 14), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_the_order_of_atoms_changes_no_group(count: int, seed: int) -> None:
    codes, rows = drawn(count, seed)
    span, order = unit_rows(rows), np.random.default_rng(seed).permutation(count)
    straight = group_atoms(summed_products(span, codes), codes.sum(0), cut=CUT, most=5)
    turned = group_atoms(summed_products(span, codes[:, order]), codes[:, order].sum(0), cut=CUT, most=5)
    assert {frozenset(order[group].tolist()) for group in turned.groups} == {
        frozenset(group) for group in members(straight)
    }


def test_atoms_of_few_documents_of_one_behaviour_are_alike_though_their_means_are_not() -> None:
    """Two atoms of three documents each share a cluster: most of a mean is its documents' noise."""
    clusters = [0] * 6 + [1] * 3
    span = unit_rows(clustered(clusters, width=4000, noise=2.5))
    codes = np.zeros((9, 3))
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
