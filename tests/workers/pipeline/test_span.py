"""Documents known by rows and by inner products are the same span."""

from __future__ import annotations

import pytest
import torch

from atomscope_workers.pipeline.span import unit_gram, unit_rows
from tests.workers.pipeline.spans import noise_rows


def test_both_spans_give_the_same_products() -> None:
    rows = noise_rows(12, 30)
    by_rows, by_gram = unit_rows(rows), unit_gram(rows @ rows.T)
    weights = noise_rows(4, 12, seed=1)
    left, right = by_rows.combine(weights), by_gram.combine(weights)
    assert by_gram.width == 24
    torch.testing.assert_close(by_gram.products(right), by_rows.products(left), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_gram.inner(right, right), by_rows.inner(left, left), atol=1e-5, rtol=1e-5)
    some = torch.tensor([3, 1, 7])
    torch.testing.assert_close(by_gram.cosines(some), by_rows.cosines(some), atol=1e-5, rtol=1e-5)


def test_few_weights_give_the_sums_that_many_would() -> None:
    """Atoms of one document, of two, and of none, the first and the last among them."""
    rows = noise_rows(200, 30)
    by_rows, by_gram = unit_rows(rows), unit_gram(rows @ rows.T)
    weights = torch.zeros(5, 200)
    weights[1, 7], weights[3, 199], weights[3, 0] = 2.0, -0.5, 1.0
    torch.testing.assert_close(by_rows.combine(weights), weights @ by_rows.rows, atol=1e-6, rtol=0)
    expected = torch.cat([weights, weights @ by_gram.gram], 1)
    torch.testing.assert_close(by_gram.combine(weights), expected, atol=1e-6, rtol=0)
    assert not by_rows.combine(torch.zeros(2, 200)).any()


def test_coordinates_of_a_gram_matrix_have_its_products_and_lead_back() -> None:
    rows = noise_rows(12, 5)  # of rank five: seven directions are rounding
    span = unit_gram(rows @ rows.T)
    coordinates = span.coordinates()
    assert coordinates.shape == (12, 5)
    torch.testing.assert_close(coordinates @ coordinates.T, span.gram, atol=1e-5, rtol=1e-5)
    vectors = noise_rows(3, 5, seed=2)
    lifted = span.from_coordinates(vectors)
    torch.testing.assert_close(span.products(lifted), coordinates @ vectors.T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["rows", "gram"])
def test_principal_directions_are_orthogonal_and_hold_the_most_of_the_documents(kind: str) -> None:
    rows = unit_rows(noise_rows(12, 5)).rows  # of rank five
    span = unit_rows(rows) if kind == "rows" else unit_gram(rows @ rows.T)
    squares = torch.linalg.svdvals(rows).square()
    for count in (2, 5, 9):
        weights = span.principal(count)
        assert weights.shape == (min(count, 5), 12)
        directions = span.combine(weights)
        inner = span.inner(directions, directions)
        torch.testing.assert_close(inner, torch.eye(len(weights)), atol=1e-4, rtol=0)
        held = span.products(directions).square().sum()
        torch.testing.assert_close(held, squares[: len(weights)].sum(), atol=1e-4, rtol=1e-4)
