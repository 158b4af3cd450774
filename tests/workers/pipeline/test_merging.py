"""Atoms that belong together are merged, and nothing of their codes is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atomscope.types.spec import AuditConfig
from atomscope_workers.pipeline.alternating import learn
from atomscope_workers.pipeline.behaviours import MEMBERSHIPS, behaviour_count, strengths
from atomscope_workers.pipeline.dictionary import dictionary_size, fit, piece_count, resolve_signs
from atomscope_workers.pipeline.merging import joined, mean_document_cosines, merge_pieces
from atomscope_workers.pipeline.span import unit_gram, unit_rows
from tests.workers.pipeline.spans import clustered

CLUSTERS = [item % 4 for item in range(80)]


def test_pieces_of_one_cluster_are_merged_into_one_atom() -> None:
    span = unit_rows(clustered(CLUSTERS, noise=1.0))
    pieces = learn(span, 16, codes="nonnegative", alpha=0.05, codes_per_document=3, seed=0)
    merged = merge_pieces(span, pieces, 4)
    assert merged.codes.shape == (80, 4)
    strongest = merged.codes.argmax(1).numpy()
    assert len(set(zip(CLUSTERS, strongest.tolist(), strict=True))) == 4
    torch.testing.assert_close(merged.codes.sum(1), pieces.codes.sum(1), atol=1e-5, rtol=1e-5)
    norms = span.inner(merged.atoms, merged.atoms).diagonal()
    torch.testing.assert_close(norms, torch.ones(4), atol=1e-5, rtol=0)


def test_merging_by_inner_products_is_merging_by_rows() -> None:
    rows = clustered(CLUSTERS, noise=1.0)
    by_rows, by_gram = unit_rows(rows), unit_gram(rows @ rows.T)
    pieces = learn(by_rows, 16, codes="nonnegative", alpha=0.05, codes_per_document=3, seed=0)
    np.testing.assert_allclose(
        mean_document_cosines(by_gram, pieces.codes), mean_document_cosines(by_rows, pieces.codes), atol=1e-4
    )


def test_the_most_alike_pieces_are_joined_first_until_so_many_are_left() -> None:
    cosines = np.array([[1.0, 0.1, 0.9], [0.1, 1.0, 0.1], [0.9, 0.1, 1.0]])
    assert [group.tolist() for group in joined(cosines, 3)] == [[0], [1], [2]]
    assert sorted(group.tolist() for group in joined(cosines, 2)) == [[0, 2], [1]]
    assert [group.tolist() for group in joined(cosines, 1)] == [[0, 1, 2]]
    assert joined(np.zeros((0, 0)), 9) == []


def test_a_document_belongs_to_its_strongest_behaviours_alone() -> None:
    codes = np.array([[5.0, 4.0, 3.0, 2.0, -9.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
    found = strengths(codes, [[0], [1], [2], [3], [4]])
    assert MEMBERSHIPS == 3
    np.testing.assert_array_equal(found, [[5, 4, 3, 0, 0], [0, 0, 1, 0, 0]])
    np.testing.assert_array_equal(strengths(codes, [[0, 4], [1, 3]]), [[5, 6], [0, 0]])
    assert strengths(codes, []).shape == (2, 0)


@pytest.mark.parametrize(("documents", "atoms", "pieces", "behaviours"), [
    (2, 2, 2, 4), (100, 25, 25, 10), (1815, 107, 302, 40), (100_000, 500, 1000, 40),
])  # fmt: skip
def test_sizes_follow_the_documents(documents: int, atoms: int, pieces: int, behaviours: int) -> None:
    assert dictionary_size("auto", documents) == atoms
    assert piece_count(AuditConfig(), atoms, documents) == pieces
    assert behaviour_count("auto", documents) == behaviours
    assert piece_count(AuditConfig(codes="signed"), atoms, documents) == atoms


def test_the_default_fit_finds_clusters_of_every_size() -> None:
    clusters = [0] * 60 + [1] * 30 + [2] * 12 + [3] * 6
    span = unit_rows(clustered(clusters, width=2000, noise=1.0))
    config = AuditConfig()
    codes = resolve_signs(fit(span, 8, config, 0), config.solver).codes
    for cluster in range(4):
        members = np.flatnonzero(np.array(clusters) == cluster)
        shares = [
            np.isin(np.argsort(-codes[:, atom])[: len(members)], members).mean()
            for atom in range(codes.shape[1])
        ]
        assert max(shares) > 0.8, f"no atom for cluster {cluster}"
