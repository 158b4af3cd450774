"""Two groups are told from one cloud, however skewed, whatever their shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atomscope_workers.pipeline.separation import MOST_DOCUMENTS, pulls, separation
from atomscope_workers.pipeline.span import unit_gram, unit_rows
from tests.workers.pipeline.spans import noise_rows

DOCUMENTS = 400


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_two_groups_gain_in_proportion_to_the_documents(share: float) -> None:
    random = np.random.default_rng(0)

    def gain(documents: int) -> float:
        group = np.arange(documents) < share * documents
        return float(separation((random.normal(size=documents) + 8 * group)[:, None])[0])

    few, many = gain(DOCUMENTS), gain(4 * DOCUMENTS)
    assert few > 25
    assert many == pytest.approx(4 * few, rel=0.25)


@pytest.mark.parametrize("shape", ["normal", "sum of skewed", "heavy on one side"])
def test_one_cloud_gains_next_to_nothing(shape: str) -> None:
    random = np.random.default_rng(1)
    values = {
        "normal": random.normal(size=(DOCUMENTS, 20)),
        "sum of skewed": random.exponential(size=(DOCUMENTS, 16, 20)).mean(1),
        "heavy on one side": random.gamma(4, size=(DOCUMENTS, 20)),
    }[shape]
    assert separation(values).max() < 12


def test_scale_and_place_do_not_count() -> None:
    random = np.random.default_rng(2)
    values = random.normal(size=(DOCUMENTS, 3)) + 4 * (random.random((DOCUMENTS, 3)) < 0.2)
    np.testing.assert_allclose(separation(1e-4 * values + 7), separation(values), rtol=1e-4, atol=0.02)


def test_what_pulls_every_document_alike_parts_none() -> None:
    assert separation(np.full((50, 2), 0.3)).tolist() == [0.0, 0.0]
    assert separation(np.zeros((3, 1))).tolist() == [0.0]
    assert separation(np.zeros((50, 0))).tolist() == []


def test_of_many_documents_an_even_sample_is_looked_at() -> None:
    random = np.random.default_rng(3)
    count = 3 * MOST_DOCUMENTS
    values = random.normal(size=(count, 1)) + 6 * (np.arange(count)[:, None] % 10 == 0)
    sampled = separation(values)
    assert sampled == pytest.approx(separation(values[::3]), rel=0.05)


def test_a_documents_own_part_in_the_mean_does_not_pull_it() -> None:
    """Against brute force; documents by rows and by inner products alike."""
    rows = noise_rows(9, 30)
    unit = (rows / rows.norm(dim=1, keepdim=True)).double().numpy()
    table = np.abs(np.random.default_rng(0).normal(size=(9, 2))) * np.array([[1.0], [-1.0], [0.0]] * 3)
    weights = table.clip(min=0)
    products = unit @ unit.T - np.eye(9)
    for span in (unit_rows(rows), unit_gram(torch.from_numpy(unit @ unit.T).float())):
        np.testing.assert_allclose(pulls(span, table), products @ weights, atol=1e-5)
