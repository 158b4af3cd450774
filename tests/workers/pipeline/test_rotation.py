"""Surrogates keep the documents' mean and covariance and nothing else of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atomscope_workers.pipeline import rotation
from atomscope_workers.pipeline.direction_span import DirectionSpan, direction_span
from atomscope_workers.pipeline.rotation import mean_keeping_rotation, turned
from atomscope_workers.pipeline.seeds import seeded
from atomscope_workers.pipeline.span import GramSpan, RowSpan, unit_gram
from tests.workers.pipeline.spans import clustered, noise_rows


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 60), seed=st.integers(0, 5))
def test_a_rotation_is_orthogonal_and_keeps_the_mean(size: int, seed: int) -> None:
    matrix = mean_keeping_rotation(size, seeded(seed, "test"))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size), atol=1e-5, rtol=0)
    torch.testing.assert_close(matrix.sum(0), torch.ones(size), atol=1e-5, rtol=0)
    torch.testing.assert_close(matrix.sum(1), torch.ones(size), atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", [1024, 16])
def test_turned_rows_have_the_mean_and_the_covariance_of_the_documents(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "BLOCK", block)
    rows = noise_rows(50, 9) + 0.5
    # Before they are scaled to unit norm again, which takes the longest step away from exactness.
    found = rotation._turn(rows.clone(), 3, "test")
    torch.testing.assert_close(found.mean(0), rows.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.T @ found, rows.T @ rows, atol=1e-3, rtol=1e-4)
    assert float((found - rows).abs().max()) > 0.5


def test_inner_products_and_rows_are_turned_alike() -> None:
    rows = noise_rows(40, 12)
    rows = rows / rows.norm(dim=1, keepdim=True)
    by_rows, by_gram = turned(RowSpan(rows), 1, "test"), turned(unit_gram(rows @ rows.T), 1, "test")
    assert isinstance(by_rows, RowSpan)
    assert isinstance(by_gram, GramSpan)
    torch.testing.assert_close(by_gram.gram, by_rows.rows @ by_rows.rows.T, atol=1e-5, rtol=1e-5)
    again = turned(RowSpan(rows), 1, "test")
    assert isinstance(again, RowSpan)
    torch.testing.assert_close(again.rows, by_rows.rows, atol=0, rtol=0)


def test_groups_do_not_survive() -> None:
    """Two documents of a group are as alike as any two."""
    rows = clustered([0] * 10 + [1] * 10 + [2] * 10, width=200, noise=0.5)
    found = turned(RowSpan(rows / rows.norm(dim=1, keepdim=True)), 0, "test")
    inside = found.cosines(torch.arange(10))
    apart = found.cosines(torch.arange(30))[:10, 10:]
    assert abs(float(inside[~torch.eye(10, dtype=torch.bool)].mean() - apart.mean())) < 0.1


def test_along_directions_documents_are_turned_as_their_rows_are_and_own_parts_add_up() -> None:
    rows = noise_rows(50, 9)
    rows = rows / rows.norm(dim=1, keepdim=True)
    span = direction_span(rows[:, :6].contiguous())
    found = turned(span, 3, "test")
    assert isinstance(found, DirectionSpan)
    torch.testing.assert_close(found.cosines(torch.arange(50)).diagonal(), torch.ones(50), atol=1e-5, rtol=0)
    # Scaled back to what they were before each became one long, they are the turned rows.
    again = rotation._turn(span.rows.clone(), 3, "test")
    lengths = (again.square().sum(1) / found.rows.square().sum(1)).sqrt()
    torch.testing.assert_close(found.rows * lengths[:, None], again, atol=1e-5, rtol=1e-5)
    # Of an orthogonal matrix applied to vectors at right angles.
    matrix = rotation._turn(torch.eye(50), 3, "test")
    own = matrix.square() @ span.own
    torch.testing.assert_close(found.own * lengths.square(), own, atol=1e-5, rtol=1e-5)
