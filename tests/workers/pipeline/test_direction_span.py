"""Documents along directions: the span of a low-rank matrix of inner products with ones on its diagonal."""

from __future__ import annotations

import torch

from atomscope.types.spec import AuditConfig
from atomscope_workers.pipeline.direction_span import DirectionSpan, direction_span
from atomscope_workers.pipeline.findings import find
from atomscope_workers.pipeline.span import GramSpan, unit_rows
from tests.workers.pipeline.spans import clustered, noise_rows

DOCUMENTS, DIRECTIONS = 12, 4


def _both() -> tuple[DirectionSpan, GramSpan]:
    rows = unit_rows(noise_rows(DOCUMENTS, 30)).rows[:, :DIRECTIONS].contiguous()
    gram = (rows @ rows.T).fill_diagonal_(1.0)
    return direction_span(rows), GramSpan(gram)


def test_its_products_are_those_of_the_inner_products_that_it_stands_for() -> None:
    span, by_gram = _both()
    weights = noise_rows(5, DOCUMENTS, seed=1)
    vectors, others = span.combine(weights), by_gram.combine(weights)
    assert (span.documents, span.width, vectors.shape) == (12, 16, (5, 16))
    torch.testing.assert_close(span.products(vectors), by_gram.products(others), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        span.inner(vectors, vectors[:2]), by_gram.inner(others, others[:2]), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(span.row(3), by_gram.row(3), atol=1e-6, rtol=0)
    some = torch.tensor([3, 1, 3])
    torch.testing.assert_close(span.cosines(some), by_gram.cosines(some), atol=1e-6, rtol=0)


def test_a_fit_finds_in_it_what_it_finds_in_these_inner_products() -> None:
    rows = unit_rows(clustered([item % 5 for item in range(60)], width=40)).rows[:, :20].contiguous()
    config = AuditConfig(min_active=2, n_atoms=5)
    along = find(direction_span(rows), config, 0)
    exact = find(GramSpan((rows @ rows.T).fill_diagonal_(1.0)), config, 0)
    assert along.kept.tolist() == exact.kept.tolist()
    torch.testing.assert_close(
        torch.from_numpy(along.behaviours), torch.from_numpy(exact.behaviours), atol=1e-3, rtol=1e-3
    )


def test_weights_of_an_atom_are_its_first_columns() -> None:
    span, _ = _both()
    weights = noise_rows(3, DOCUMENTS, seed=1)
    assert torch.equal(span.combine(weights)[:, :DOCUMENTS], weights)


def test_own_parts_make_every_document_one_long_and_are_never_below_nothing() -> None:
    rows = torch.tensor([[0.6, 0.0], [1.0, 1e-4], [0.0, 0.0]])
    span = direction_span(rows)
    torch.testing.assert_close(span.own, torch.tensor([0.64, 0.0, 1.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(span.cosines(torch.arange(3)).diagonal(), torch.ones(3), atol=1e-6, rtol=0)


def test_principal_directions_hold_the_most_of_what_documents_have_in_common() -> None:
    span, _ = _both()
    weights = span.principal(2)
    along = span.combine(weights)[:, DOCUMENTS:]
    torch.testing.assert_close(along @ along.T, torch.eye(2), atol=1e-5, rtol=0)
    held = (span.rows @ along.T).square().sum()
    torch.testing.assert_close(held, torch.linalg.svdvals(span.rows).square()[:2].sum(), atol=1e-5, rtol=1e-5)


def test_vectors_of_coordinates_lie_where_these_say() -> None:
    span, _ = _both()
    vectors = noise_rows(3, DIRECTIONS, seed=2)
    lifted = span.from_coordinates(vectors)
    torch.testing.assert_close(span.inner(lifted, lifted).diagonal(), vectors.square().sum(1))
    torch.testing.assert_close(
        torch.nn.functional.cosine_similarity(lifted[:, DOCUMENTS:], vectors), torch.ones(3)
    )
    # What lies along the directions is made of documents, and so has their own parts beside it.
    weights = lifted[:, :DOCUMENTS]
    torch.testing.assert_close(weights @ span.rows, lifted[:, DOCUMENTS:], atol=1e-5, rtol=1e-4)
    assert not span.from_coordinates(torch.zeros(1, DIRECTIONS)).any()
    assert torch.equal(span.coordinates(), span.rows)
