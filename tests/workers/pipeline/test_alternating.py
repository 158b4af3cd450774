"""The torch learner: its codes are optimal, its dictionary no worse than scikit-learn's, its runs equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atomscope.types.spec import Codes
from atomscope_workers.pipeline import alternating
from atomscope_workers.pipeline.alternating import TOLERANCE, TOLERANCE_THEN, learn
from atomscope_workers.pipeline.fit import Fit
from atomscope_workers.pipeline.minibatch import learn_minibatch, learner
from atomscope_workers.pipeline.span import unit_gram, unit_rows
from tests.workers.pipeline.spans import clustered, noise_rows

CLUSTERS = [0, 1, 2, 3, 4] * 12
KINDS: list[Codes] = ["nonnegative", "signed"]


def test_known_atoms_are_found_again() -> None:
    """Documents that are sums of two of eight orthogonal atoms: every atom comes back."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.linalg.qr(torch.randn(60, 8, generator=generator)).Q.T
    chosen = torch.stack([torch.randperm(8, generator=generator)[:2] for _ in range(300)])
    weights = torch.zeros(300, 8).scatter_(1, chosen, torch.rand(300, 2, generator=generator) + 0.2)
    span = unit_rows(weights @ truth)
    found = learn(span, 8, codes="nonnegative", alpha=0.02, codes_per_document=2, seed=0)
    cosines = found.atoms @ truth.T
    assert float(cosines.max(0).values.min()) > 0.98
    assert found.converged
    assert found.last_fall is not None
    assert found.last_fall < TOLERANCE


def test_a_fit_that_its_limit_stops_says_so_and_how_far_it_still_fell() -> None:
    span = unit_rows(clustered(CLUSTERS, noise=1.0))

    def after(outer: int) -> Fit:
        return learn(span, 8, codes="nonnegative", alpha=0.05, codes_per_document=2, seed=0, outer=outer)

    assert (after(1).converged, after(1).last_fall) == (False, None)
    stopped = after(3)
    assert (stopped.converged, stopped.rounds, stopped.tolerance) == (False, 3, TOLERANCE)
    assert stopped.last_fall is not None
    assert stopped.last_fall > TOLERANCE


def to_the_end_and_having_seen_many(
    n_atoms: int, alpha: float, noise: float, monkeypatch: pytest.MonkeyPatch
) -> tuple[Fit, Fit]:
    """One fit of the clusters as it is, and as if five rounds over them were many documents."""
    span = unit_rows(clustered(CLUSTERS, noise=noise))

    def fitted() -> Fit:
        return learn(span, n_atoms, codes="nonnegative", alpha=alpha, codes_per_document=2, seed=0)

    whole = fitted()
    monkeypatch.setattr(alternating, "SEEN", 5 * len(CLUSTERS))
    return whole, fitted()


def test_a_fit_that_has_seen_many_documents_ends_at_a_greater_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, early = to_the_end_and_having_seen_many(8, 0.05, 1.0, monkeypatch)
    assert (whole.tolerance, early.tolerance) == (TOLERANCE, TOLERANCE_THEN)
    assert 5 <= early.rounds < whole.rounds
    assert early.converged
    assert early.objective < whole.objective * 1.02


def test_documents_that_are_all_but_explained_end_a_fit_that_has_seen_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, early = to_the_end_and_having_seen_many(40, 0.003, 0.5, monkeypatch)
    assert whole.objective < early.objective < alternating.LITTLE
    assert early.rounds < whole.rounds
    assert early.tolerance == pytest.approx(TOLERANCE_THEN * alternating.LITTLE / early.objective, rel=0.05)
    assert early.last_fall is not None
    assert early.last_fall * early.objective < TOLERANCE_THEN * alternating.LITTLE * 1.05
    assert early.converged


def test_scikit_learn_that_ran_out_of_steps_has_not_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    span = unit_rows(clustered(CLUSTERS, noise=1.0))
    assert learn_minibatch(span, 6, alpha=0.1, seed=0).converged

    def short(*arguments: Any) -> Any:
        return learner(*arguments).set_params(max_iter=2)

    monkeypatch.setattr("atomscope_workers.pipeline.minibatch.learner", short)
    assert not learn_minibatch(span, 6, alpha=0.1, seed=0).converged


@pytest.mark.parametrize("codes", KINDS)
def test_rows_and_inner_products_give_one_fit(codes: Codes) -> None:
    rows = clustered(CLUSTERS, noise=0.7)
    by_rows = learn(unit_rows(rows), 6, codes=codes, alpha=0.1, codes_per_document=2, seed=0)
    by_gram = learn(unit_gram(rows @ rows.T), 6, codes=codes, alpha=0.1, codes_per_document=2, seed=0)
    assert by_gram.objective == pytest.approx(by_rows.objective, rel=1e-3)
    torch.testing.assert_close(by_gram.codes, by_rows.codes, atol=2e-2, rtol=0)


@pytest.mark.parametrize("of_inner_products", [False, True])
@pytest.mark.parametrize(("block", "blocks"), [(1, 5), (3, 1), (3, 2), (32, 8)])
def test_atoms_updated_by_the_block_are_those_of_one_after_another(
    monkeypatch: pytest.MonkeyPatch, block: int, blocks: int, of_inner_products: bool
) -> None:
    rows = clustered(CLUSTERS, noise=0.7)
    span = unit_gram(rows @ rows.T) if of_inner_products else unit_rows(rows)

    def fitted(block: int, blocks: int) -> Fit:
        monkeypatch.setattr(alternating, "BLOCK", block)
        monkeypatch.setattr(alternating, "BLOCKS", blocks)
        return learn(span, 14, codes="signed", alpha=0.1, codes_per_document=2, seed=0, outer=3)

    one, found = fitted(1, 1), fitted(block, blocks)
    torch.testing.assert_close(found.atoms, one.atoms, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.codes, one.codes, atol=1e-5, rtol=0)
    assert found.objective == pytest.approx(one.objective, rel=1e-5)


@pytest.mark.parametrize("codes", KINDS)
def test_the_objective_is_that_of_its_codes_and_atoms(codes: Codes) -> None:
    rows = clustered(CLUSTERS, noise=0.7)
    span = unit_rows(rows)
    found = learn(span, 6, codes=codes, alpha=0.1, codes_per_document=2, seed=0)
    unexplained = (span.coordinates() - found.codes @ found.atoms).double().square().sum(1)
    expected = (0.5 * unexplained + found.alpha * found.codes.double().abs().sum(1)).mean()
    assert found.objective == pytest.approx(float(expected), rel=1e-5)


def test_its_objective_is_no_worse_than_that_of_scikit_learn() -> None:
    span = unit_rows(clustered(CLUSTERS, noise=1.5))
    ours = learn(span, 10, codes="signed", alpha=0.1, codes_per_document=2, seed=0, outer=200)
    theirs = learn_minibatch(span, 10, alpha=0.1, seed=0)
    assert ours.objective <= theirs.objective * 1.005


@pytest.mark.parametrize("alpha", [1.0, 1.5])
@pytest.mark.parametrize("codes", KINDS)
def test_a_penalty_that_no_document_reaches_ends_at_once_without_a_code(codes: Codes, alpha: float) -> None:
    rows = noise_rows(30, 60)
    for span in (unit_rows(rows), unit_gram(rows @ rows.T)):
        found = learn(span, 6, codes=codes, alpha=alpha, codes_per_document=2, seed=0)
        assert (found.converged, found.rounds, found.reseeded) == (True, 1, 0)
        assert found.codes_per_document == 0
        assert found.objective == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("wanted", [1.5, 3.0, 6.0])
def test_the_penalty_is_chosen_by_the_codes_of_a_document(wanted: float) -> None:
    span = unit_rows(clustered([item % 20 for item in range(200)], noise=1.0))
    found = learn(span, 40, codes="nonnegative", alpha=None, codes_per_document=wanted, seed=0)
    assert found.codes_per_document == pytest.approx(wanted, rel=0.3)


def test_one_seed_gives_one_result_and_another_seed_another() -> None:
    span = unit_rows(clustered(CLUSTERS))
    first, again, other = (
        learn(span, 8, codes="nonnegative", alpha=0.05, codes_per_document=2, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first.codes, again.codes)
    assert torch.equal(first.atoms, again.atoms)
    assert not torch.equal(first.codes, other.codes)


def test_copies_of_few_documents_give_no_more_atoms_than_there_are_kinds() -> None:
    span = unit_rows(clustered([0, 1, 2] * 8, noise=0.0))
    found = learn(span, 10, codes="nonnegative", alpha=0.05, codes_per_document=2, seed=0)
    assert found.codes.shape == (24, 3)
    assert torch.isfinite(found.atoms).all()


@pytest.mark.parametrize("n_atoms", [0, 25])
def test_an_impossible_size_is_refused(n_atoms: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 24"):
        learn(unit_rows(noise_rows(24, 9)), n_atoms, codes="signed", alpha=0.1, codes_per_document=2, seed=0)


@pytest.mark.parametrize("codes", KINDS)
def test_an_atom_that_no_document_uses_begins_anew_at_the_one_explained_worst(codes: Codes) -> None:
    """Three of four clusters have an atom; the unused one goes to a document of the fourth."""
    rows = clustered([0, 1, 2, 3] * 6, noise=0.0)
    span = unit_rows(rows)
    atoms = span.coordinates()[[0, 1, 2, 0]].clone()
    found = torch.zeros(24, 4)
    for place in range(24):
        if place % 4 < 3:
            found[place, place % 4] = 1.0
    norms = span.coordinates().square().sum(1)
    count = alternating._reseed(span, atoms, found, norms, [3])
    assert count == 1
    assert torch.allclose(atoms[3], span.coordinates()[3], atol=1e-5)
    assert not found[:, 3].any()
    assert torch.allclose(atoms[:3], span.coordinates()[[0, 1, 2]])


def test_two_atoms_begun_anew_begin_at_two_documents() -> None:
    span = unit_rows(noise_rows(30, 60))
    atoms, codes = torch.zeros(5, 60), torch.zeros(30, 5)
    norms = span.coordinates().square().sum(1)
    assert alternating._reseed(span, atoms, codes, norms, [1, 4]) == 2
    assert atoms[[0, 2, 3]].abs().sum() == 0
    assert abs(float(atoms[1] @ atoms[4])) < 0.9
