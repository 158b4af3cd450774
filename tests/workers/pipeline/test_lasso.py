"""Codes are optimal: in all coordinates, and in working sets of a few, whatever they begin from."""

from __future__ import annotations

import pytest
import torch

from atomscope.types.spec import Codes
from atomscope_workers.pipeline import lasso
from atomscope_workers.pipeline.lasso import LEAST, SPARE, fista, settled_codes, sparse_codes
from atomscope_workers.pipeline.span import unit_rows
from tests.workers.pipeline.spans import noise_rows

KINDS: list[Codes] = ["nonnegative", "signed"]
MANY = 6 * LEAST


def assert_optimal(
    products: torch.Tensor, inner: torch.Tensor, found: torch.Tensor, alpha: float, codes: Codes
) -> None:
    """The conditions of the lasso: what is used pulls by the penalty, what is not by no more."""
    pull = products - found @ inner
    active = found.abs() > 1e-5
    torch.testing.assert_close(pull[active], alpha * found[active].sign(), atol=1e-4, rtol=0)
    idle = pull[~active] if codes == "nonnegative" else pull[~active].abs()
    assert float(idle.max()) <= alpha + 1e-4
    if codes == "nonnegative":
        assert float(found.min()) >= 0


@pytest.mark.parametrize("codes", KINDS)
def test_codes_meet_the_conditions_of_the_lasso(codes: Codes) -> None:
    span, alpha = unit_rows(noise_rows(40, 25)), 0.15
    atoms = unit_rows(noise_rows(10, 25, seed=1)).rows
    products, inner = span.products(atoms), span.inner(atoms, atoms)
    found = fista(products, inner, torch.zeros(40, 10), alpha, codes, 3000, 1e-8)
    assert 0.05 < float((found.abs() > 1e-5).float().mean()) < 0.95, "all or nothing tests nothing"
    assert_optimal(products, inner, found, alpha, codes)


@pytest.mark.parametrize(("codes", "alpha"), [("nonnegative", 0.13), ("signed", 0.16)])
@pytest.mark.parametrize("block_bytes", [1, 2**25])
def test_working_sets_lead_to_the_same_optimum(
    codes: Codes, alpha: float, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lasso, "BLOCK_BYTES", block_bytes)
    span = unit_rows(noise_rows(90, 60))
    atoms = unit_rows(noise_rows(MANY, 60, seed=1)).rows
    products, inner = span.products(atoms), span.inner(atoms, atoms)
    found = settled_codes(products, inner, torch.zeros(len(products), len(atoms)), alpha, codes)
    counts, in_the_least = (found != 0).sum(1), LEAST - SPARE
    assert int(counts.min()) < in_the_least < int(counts.max()), "sets of one size alone"
    assert_optimal(products, inner, found, alpha, codes)


def test_a_set_that_leaves_out_what_counts_is_chosen_anew() -> None:
    """From codes on the wrong atoms the right ones are found."""
    span, alpha = unit_rows(noise_rows(20, 60)), 0.05
    atoms = unit_rows(noise_rows(MANY, 60, seed=1)).rows
    products, inner = span.products(atoms), span.inner(atoms, atoms)
    wrong = torch.zeros(20, MANY)
    wrong[:, 100:110] = 0.3
    found = settled_codes(products, inner, wrong, alpha, "nonnegative")
    assert_optimal(products, inner, found, alpha, "nonnegative")


def test_documents_do_not_matter_to_each_other() -> None:
    span = unit_rows(noise_rows(12, 60))
    atoms = unit_rows(noise_rows(MANY, 60, seed=1)).rows
    products, inner = span.products(atoms), span.inner(atoms, atoms)
    start = torch.zeros(12, MANY)
    whole = sparse_codes(products, inner, start, 0.05, "nonnegative", 12)
    apart = [sparse_codes(products[[row]], inner, start[[row]], 0.05, "nonnegative", 12) for row in range(12)]
    torch.testing.assert_close(whole, torch.cat(apart), atol=1e-6, rtol=0)


def test_sets_that_would_hold_half_of_the_atoms_hold_all() -> None:
    span = unit_rows(noise_rows(12, 60))
    atoms = unit_rows(noise_rows(2 * LEAST - 1, 60, seed=1)).rows
    products, inner = span.products(atoms), span.inner(atoms, atoms)
    start = torch.zeros(12, len(atoms))
    expected = fista(products, inner, start, 0.05, "signed", 12)
    assert torch.equal(sparse_codes(products, inner, start, 0.05, "signed", 12), expected)
