"""Documents that an atom pulls as its own get a part of its strength, and nothing else changes."""

from __future__ import annotations

import numpy as np
import torch

from atomscope_workers.pipeline.completion import SHARE, completed
from atomscope_workers.pipeline.rotation import turned
from atomscope_workers.pipeline.span import unit_gram, unit_rows
from tests.workers.pipeline.spans import clustered, noise_rows

DOCUMENTS, OWN = 300, 30


def _planted() -> torch.Tensor:
    """Rows of which the first `OWN` share a direction, the others none."""
    rows = noise_rows(DOCUMENTS, 200, seed=1)
    rows[:OWN] = clustered([0] * OWN, noise=1.0)
    return rows


def _half_coded() -> np.ndarray:
    """Codes of two atoms: the first on every second document of the group, the second on a few others."""
    codes = np.zeros((DOCUMENTS, 2))
    codes[0:OWN:2, 0] = 0.5
    codes[OWN : OWN + 10, 1] = 0.5
    return codes


def test_documents_that_the_code_left_out_are_given_back() -> None:
    codes = _half_coded()
    found = completed(unit_rows(_planted()), codes)
    assert (found[:OWN, 0] > 0).all()
    assert (found[OWN:, 0] == 0).all()


def test_every_atoms_strength_adds_up_to_what_it_was() -> None:
    codes = _half_coded()
    found = completed(unit_rows(_planted()), codes)
    np.testing.assert_allclose(found.sum(0), codes.sum(0), rtol=1e-9)
    coded = codes[:, 0] > 0
    assert (found[coded, 0] >= (1 - SHARE) * codes[coded, 0] - 1e-12).all()


def test_an_atom_that_parts_no_documents_keeps_its_codes() -> None:
    codes = _half_coded()
    found = completed(unit_rows(_planted()), codes)
    np.testing.assert_array_equal(found[:, 1], codes[:, 1])
    surrogate = turned(unit_rows(noise_rows(DOCUMENTS, 200)), 0, "test")
    np.testing.assert_array_equal(completed(surrogate, codes), codes)


def test_an_atom_of_one_document_keeps_it_alone() -> None:
    codes = np.zeros((DOCUMENTS, 1))
    codes[0] = 0.7
    np.testing.assert_array_equal(completed(unit_rows(_planted()), codes), codes)


def test_rows_and_inner_products_give_the_same() -> None:
    rows = _planted()
    unit = (rows / rows.norm(dim=1, keepdim=True)).double()
    by_rows = completed(unit_rows(rows), _half_coded())
    by_gram = completed(unit_gram((unit @ unit.T).float()), _half_coded())
    np.testing.assert_allclose(by_gram, by_rows, atol=1e-5)


def test_the_order_of_documents_does_not_count() -> None:
    rows, codes = _planted(), _half_coded()
    order = np.random.default_rng(0).permutation(DOCUMENTS)
    permuted = completed(unit_rows(rows[torch.from_numpy(order)]), codes[order])
    np.testing.assert_allclose(permuted, completed(unit_rows(rows), codes)[order], atol=1e-6)


def test_without_atoms_there_is_nothing_to_complete() -> None:
    assert completed(unit_rows(_planted()), np.zeros((DOCUMENTS, 0))).shape == (DOCUMENTS, 0)
