"""Directions come near those along which documents vary most, and coordinates along them are exact."""

from __future__ import annotations

import pytest
import torch

from atomscope_workers.pipeline.directions import (
    coordinates,
    probes,
    sharpened_directions,
    sketched_directions,
)
from atomscope_workers.pipeline.span import unit_rows
from atomscope_workers.pipeline.vectors import weighted_sums
from tests.workers.pipeline.spans import curvature_of, gradients, in_shards, noise_rows, whitened

SIZES = [5, 5, 3]


def _documents(count: int = 300, width: int = 2000) -> torch.Tensor:
    """Unit rows of ten strong directions, and noise in all."""
    common = noise_rows(count, 10) @ noise_rows(10, width, seed=1)
    return unit_rows(common + 8 * noise_rows(count, width, seed=2)).rows


def _sketched(rows: torch.Tensor, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return unit_rows(rows @ torch.randn(rows.shape[1], columns, generator=generator)).rows


def _products(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return rows @ (rows.T @ weights)


def _held(rows: torch.Tensor, weights: torch.Tensor) -> float:
    """Sum of the documents' squares along the directions of some weights."""
    basis = torch.linalg.qr(rows.T @ weights)[0]
    return float((rows @ basis).square().sum())


def test_each_product_brings_directions_nearer_to_those_that_hold_the_most() -> None:
    rows = _documents()
    best = float(torch.linalg.svdvals(rows)[:10].square().sum())
    weights = sketched_directions(_sketched(rows, 64), 10, 0)
    shares = [_held(rows, weights) / best]
    for _ in range(2):
        weights = sharpened_directions(_products(rows, weights))
        shares.append(_held(rows, weights) / best)
    assert shares[0] < shares[1] < shares[2] <= 1 + 1e-5
    assert shares[0] < 0.97
    assert shares[2] > 0.99


def test_coordinates_are_the_projections_on_the_directions() -> None:
    rows = _documents(60, 400)
    weights = sketched_directions(_sketched(rows, 100), 15, 0)
    found = coordinates(weights, _products(rows, weights))
    basis = torch.linalg.qr(rows.T @ weights)[0]
    torch.testing.assert_close(found @ found.T, rows @ basis @ basis.T @ rows.T, atol=1e-4, rtol=1e-4)
    assert float(found.square().sum(1).max()) <= 1 + 1e-5


def test_as_many_directions_as_documents_give_every_inner_product() -> None:
    rows = _documents(40, 400)
    weights = sketched_directions(_sketched(rows, 200), 2048, 0)
    assert weights.shape == (40, 40)
    found = coordinates(weights, _products(rows, weights))
    torch.testing.assert_close(found @ found.T, rows @ rows.T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("columns", "directions"), [(200, 5), (16, 16)])
def test_there_are_no_more_directions_than_were_asked_for_or_columns_show(
    columns: int, directions: int
) -> None:
    weights = sketched_directions(_sketched(_documents(40, 400), columns), 5 if columns == 200 else 99, 0)
    torch.testing.assert_close(weights.T @ weights, torch.eye(directions), atol=1e-5, rtol=0)


def test_of_documents_in_fewer_dimensions_what_is_rounding_is_left_out() -> None:
    rows = unit_rows(noise_rows(40, 6)).rows
    weights = sharpened_directions(_products(rows, sketched_directions(rows, 20, 0)))
    found = coordinates(weights, _products(rows, weights))
    assert found.shape == (40, 6)
    torch.testing.assert_close(found @ found.T, rows @ rows.T, atol=1e-4, rtol=1e-4)


def test_no_documents_have_no_directions() -> None:
    weights = sharpened_directions(sketched_directions(torch.zeros(0, 64), 8, 0))
    assert coordinates(weights, torch.zeros(0, 0)).shape == (0, 0)


def test_a_gradient_times_a_probe_is_the_product_of_both_whitened() -> None:
    found = gradients(13)
    curvature = curvature_of(found)
    weights = noise_rows(4, 13, seed=1)
    products = torch.zeros(13, 4)
    for module in curvature:
        summed = weighted_sums(weights, in_shards(found, SIZES), SIZES, [module.name])[module.name]
        products += found[module.name].flatten(1) @ probes(module, summed).flatten(1).T
    dense = whitened(found, curvature)
    torch.testing.assert_close(products.double(), dense @ (weights.double() @ dense).T, atol=1e-3, rtol=1e-4)
