"""Coherence of beginnings against brute force, however the sums are cut up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from atomscope_workers.pipeline import coherence
from atomscope_workers.pipeline.coherence import Beginnings, coherences, random_orders

DOCUMENTS = 30
SHAPES = {"first": (3, 8), "second": (5, 4)}


def gradients() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: 3 + torch.randn(DOCUMENTS, *shape) for name, shape in SHAPES.items()}


def whole(found: dict[str, torch.Tensor]) -> NDArray[np.float64]:
    return torch.cat([rows.flatten(1) for rows in found.values()], 1).double().numpy()


def mean_cosine(rows: NDArray[np.float64]) -> float:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return float((unit @ unit.T)[np.triu_indices(len(rows), 1)].mean()) if len(rows) > 1 else 0.0


@pytest.mark.parametrize("block_bytes", [1, 1000, 2**28])
def test_every_beginning_has_the_mean_cosine_of_its_pairs(
    block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coherence, "BLOCK_BYTES", block_bytes)
    found = gradients()
    rows = whole(found)
    orders = random_orders(np.arange(DOCUMENTS), 12, seed=1, count=4)
    nothing = np.zeros(0, dtype=np.int64)
    sets = [
        Beginnings.whole(nothing),
        Beginnings.whole(np.array([4])),
        Beginnings(orders[0], np.array([1, 2, 7, 12])),
        Beginnings(orders[1], nothing),
        Beginnings.whole(orders[2]),
        Beginnings(orders[3], np.array([5])),
    ]
    given = coherences(sets, found, lambda name, wanted: found[name][wanted], np.linalg.norm(rows, axis=1))
    for item, values in zip(sets, given, strict=True):
        expected = [mean_cosine(rows[item.rows[:size]]) for size in item.sizes]
        np.testing.assert_allclose(values, expected, atol=1e-6)


def test_only_rows_that_some_set_uses_are_loaded() -> None:
    found = gradients()
    asked: list[list[int]] = []

    def load(name: str, wanted: NDArray[np.int64]) -> torch.Tensor:
        asked.append(wanted.tolist())
        return found[name][wanted]

    order = np.array([9, 3, 20, 11])
    coherences([Beginnings(order, np.array([2, 3]))], found, load, np.linalg.norm(whole(found), axis=1))
    assert asked == [[3, 9, 20]] * len(SHAPES)


def test_a_document_without_a_gradient_is_refused_in_a_set_and_ignored_beyond_it() -> None:
    found = gradients()
    norms = np.linalg.norm(whole(found), axis=1)
    norms[5] = 0

    def load(name: str, wanted: NDArray[np.int64]) -> torch.Tensor:
        return found[name][wanted]

    with pytest.raises(ValueError, match="zero gradient"):
        coherences([Beginnings.whole(np.array([4, 5]))], found, load, norms)
    (value,) = coherences([Beginnings(np.array([3, 4, 5]), np.array([2]))], found, load, norms)
    assert np.isfinite(value).all()
