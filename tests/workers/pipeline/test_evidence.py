"""P-values hold their level on noise and let what is there pass; stability and false-discovery rates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atomscope.types.atoms import Evidence
from atomscope.types.spec import AuditConfig
from atomscope_workers.pipeline.dictionary import fit
from atomscope_workers.pipeline.evidence import (
    benjamini_hochberg,
    column_cosines,
    first_documents,
    p_values,
    score,
    stability,
    tightness,
)
from atomscope_workers.pipeline.span import Span, deal, unit_rows
from tests.workers.pipeline.spans import clustered, noise_rows

CONFIG = AuditConfig(codes_per_document=4)
ATOMS = 20


def _tight(span: Span, seed: int) -> tuple[list[float], list[int]]:
    codes = fit(span, ATOMS, CONFIG, seed).codes.double().numpy()
    sets = [members for members in first_documents(codes, 20) if len(members) >= 5]
    return [tightness(span, members) for members in sets], [len(members) for members in sets]


def _q_values(rows: torch.Tensor, seed: int) -> list[float]:
    null: tuple[list[float], list[int]] = ([], [])
    for number in range(AuditConfig().surrogates):
        tight, sizes = _tight(unit_rows(deal(rows, seed, str(number))), seed)
        null[0].extend(tight)
        null[1].extend(sizes)
    tight, sizes = _tight(unit_rows(rows), seed)
    found = benjamini_hochberg(p_values(tight, sizes, *null))
    return [item for item in found if item is not None]


def test_noise_passes_no_more_often_than_it_may() -> None:
    """The whole fit is repeated on surrogates, so that choosing alike documents is no discovery: 20 draws."""
    passed: list[float] = []
    for draw in range(20):
        q = _q_values(noise_rows(120, 300, seed=draw), draw)
        passed.append(float(np.mean([value <= 0.05 for value in q])))
    assert np.mean(passed) < 0.01


def test_clusters_pass() -> None:
    planted = clustered([0] * 12 + [1] * 12, width=300, noise=2.0)
    rows = torch.cat([planted, noise_rows(96, 300, seed=9) * 2.2])
    q = _q_values(rows, 0)
    assert sum(value <= 0.05 for value in q) >= 2


def test_a_value_beyond_the_null_is_judged_by_its_tail_and_one_within_by_its_place() -> None:
    null = list(np.linspace(0, 0.1, 200))
    within, edge, beyond = p_values([0.05, 0.1, 0.5], [20, 20, 20], null, [20] * 200)
    assert within == pytest.approx(0.5, abs=0.02)
    assert edge == pytest.approx(2 / 201, abs=1e-6)
    assert beyond is not None
    assert beyond < 1e-6
    assert p_values([1e6], [20], null, [20] * 200) == [1e-9]


def test_a_mean_over_fewer_documents_must_be_larger_to_mean_as_much() -> None:
    null = list(np.linspace(-0.1, 0.1, 200))
    few, many = p_values([0.08, 0.08], [5, 20], null, [20] * 200)
    assert few is not None
    assert many is not None
    assert few > 3 * many


def test_too_small_a_null_gives_no_p_value() -> None:
    assert p_values([0.5], [20], [0.1] * 10, [20] * 10) == [None]
    assert benjamini_hochberg([None, 0.04, None]) == [None, 0.04, None]


def test_false_discovery_rates_are_those_of_benjamini_and_hochberg() -> None:
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_false_discovery_rates_keep_the_order_and_are_never_below_the_p_value(p: list[float]) -> None:
    q = benjamini_hochberg(list(p))
    for item, value in enumerate(p):
        rate = q[item]
        assert rate is not None
        assert value - 1e-12 <= rate <= 1
        assert all(
            other is not None and rate <= other + 1e-12 for place, other in enumerate(q) if p[place] >= value
        )


def test_stability_pairs_each_with_one_partner() -> None:
    same = np.eye(3)
    assert stability([same, same]).tolist() == [1, 1, 1]
    crowded = np.array([[0.9, 0.0], [0.8, 0.1]])  # both want the first: one must take the second
    assert stability([crowded]).tolist() == [0.9, 0.1]
    assert stability([np.array([[0.5], [0.9]])]).tolist() == [0.0, 0.9]
    with pytest.raises(ValueError, match="no other fit"):
        stability([])


def test_column_cosines_are_zero_of_an_empty_column() -> None:
    left, right = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[2.0], [2.0]])
    np.testing.assert_allclose(column_cosines(left, right), [[2**-0.5], [0.0]])


def test_tightness_is_the_mean_pairwise_cosine() -> None:
    span = unit_rows(noise_rows(6, 10))
    unit = span.rows.double().numpy()
    expected = np.mean([unit[a] @ unit[b] for a, b in ((0, 2), (0, 5), (2, 5))])
    assert tightness(span, np.array([5, 0, 2])) == pytest.approx(expected, abs=1e-6)
    assert tightness(span, np.array([3])) == 0.0


def test_the_score_is_what_lies_above_the_null_times_stability() -> None:
    assert score(Evidence(tightness=0.5, null_tightness=0.1, stability=0.5)) == pytest.approx(0.2)
    assert score(Evidence(tightness=0.5)) == 0.5
    assert score(Evidence(tightness=0.05, null_tightness=0.1, stability=1.0)) == 0.0
