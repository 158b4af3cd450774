"""P-values hold their level on noise and let what is there pass; stability and false-discovery rates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from atomscope.types.spec import AuditConfig
from atomscope_workers.pipeline.dictionary import fit
from atomscope_workers.pipeline.evidence import (
    benjamini_hochberg,
    column_cosines,
    enough_of_each,
    p_values,
    prominence,
    stability,
    tightness,
)
from atomscope_workers.pipeline.rotation import turned
from atomscope_workers.pipeline.separation import pulls, separation
from atomscope_workers.pipeline.span import Span, unit_rows
from tests.workers.pipeline.spans import clustered, noise_rows

CONFIG = AuditConfig(codes_per_document=4)
ATOMS = 12


def _separations(span: Span, seed: int) -> NDArray[np.float64]:
    return separation(pulls(span, fit(span, ATOMS, CONFIG, seed).codes.double().numpy()))


def _p_values(rows: torch.Tensor, seed: int) -> list[float]:
    span = unit_rows(rows)
    null = [_separations(turned(span, seed, str(number)), seed) for number in range(AuditConfig().surrogates)]
    return [item or 0.0 for item in p_values(_separations(span, seed), np.concatenate(null))]


def _noise(kind: str, draw: int) -> torch.Tensor:
    """80 documents in 120 columns that vary, of unequal strength, but fall into no groups."""
    documents, width, tokens = 80, 120, 24
    generator = torch.Generator().manual_seed(draw)
    strength = torch.linspace(1, 0.02, width) ** 2
    if kind == "gaussian":
        return 1 + strength * 20 * torch.randn(documents, width, generator=generator)
    # What a document of so many independent tokens is: a sum, skewed as its tokens are.
    drawn = torch.empty(documents, tokens, width).exponential_(generator=generator)
    return strength * 20 * (drawn.mean(1) - 0.9)


@given(st.data(), st.integers(1, 30), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_what_is_to_be_measured_is_enough_of_each_set_and_nothing_known(
    data: st.DataObject, count: int, share: float
) -> None:
    known = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    places = st.lists(st.integers(0, count - 1), max_size=8, unique=True)
    sets = [np.array(each, np.int64) for each in data.draw(st.lists(places, max_size=12))]
    found = enough_of_each(known, sets, share)
    assert not known[found].any()
    assert len(set(found)) == len(found)
    after = known.copy()
    after[found] = True
    assert all(after[each].sum() >= share * len(each) for each in sets)
    # Each was wanted by a set that lacked some.
    assert len(found) <= sum(max(0, np.ceil(share * len(each)) - known[each].sum()) for each in sets)


def test_what_several_sets_want_is_measured_first_and_of_equals_the_strongest() -> None:
    sets = [np.array(places) for places in ([1, 9, 2, 3], [4, 5, 9, 7], [6, 8])]
    known = np.zeros(10, np.bool_)
    assert enough_of_each(known, sets, 0.5) == [9, 1, 4, 6]
    known[[1, 2]] = True
    assert enough_of_each(known, sets, 0.5) == [4, 6, 9]
    assert enough_of_each(known, [], 0.5) == []


@pytest.mark.parametrize("draws", [range(3), pytest.param(range(3, 45), marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["gaussian", "sums of tokens"])
def test_noise_passes_no_more_often_than_it_may(kind: str, draws: range) -> None:
    """The whole fit is repeated on surrogates, so that choosing alike documents is no discovery."""
    passed: list[float] = []
    for draw in draws:
        q = benjamini_hochberg(_p_values(_noise(kind, draw), draw))
        passed.append(float(np.mean([value is not None and value <= 0.05 for value in q])))
    assert np.mean(passed) < 0.01


def test_p_values_of_the_whole_procedure_are_uniform_on_noise() -> None:
    """Over several draws, since the p-values of one share a null."""
    found = np.concatenate([_p_values(_noise("gaussian", draw), draw) for draw in range(100, 106)])
    for level in (0.05, 0.2, 0.5):
        assert np.mean(found <= level) == pytest.approx(level, abs=0.08 + 0.1 * level)


def test_clusters_pass() -> None:
    planted = clustered([0] * 12 + [1] * 12, width=300, noise=2.0)
    rows = torch.cat([planted, noise_rows(96, 300, seed=9) * 2.2])
    q = benjamini_hochberg(_p_values(rows, 0))
    assert sum(value is not None and value <= 0.05 for value in q) >= 2


def test_a_value_beyond_the_null_is_judged_by_its_tail_and_one_within_by_its_place() -> None:
    null = np.linspace(0, 0.1, 200)
    within, edge, beyond = p_values(np.array([0.05, 0.1, 0.5]), null)
    assert within == pytest.approx(0.5, abs=0.02)
    assert edge == pytest.approx(2 / 201, abs=1e-6)
    assert beyond is not None
    assert beyond < 1e-6
    assert p_values(np.array([1e6]), null) == [1e-9]


def test_too_small_a_null_gives_no_p_value() -> None:
    assert p_values(np.array([0.5]), np.full(10, 0.1)) == [None]
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


def test_tightness_is_the_mean_pairwise_cosine_weighted_by_strength() -> None:
    """Against brute force; a column of one document, of none, and of negative strengths beside."""
    span = unit_rows(noise_rows(6, 10))
    unit = span.rows.double().numpy()
    table = np.zeros((6, 4))
    table[[5, 0, 2], 0] = 2.0, 1.0, 0.5
    table[3, 1] = 1.0
    table[[5, 0, 2, 1], 3] = 2.0, 1.0, 0.5, -3.0
    pairs = {(5, 0): 2.0, (5, 2): 1.0, (0, 2): 0.5}
    expected = sum(weight * unit[a] @ unit[b] for (a, b), weight in pairs.items()) / sum(pairs.values())
    found = tightness(pulls(span, table), table)
    np.testing.assert_allclose(found, [expected, 0.0, 0.0, expected], atol=1e-6)


def test_prominence_is_how_far_its_documents_pull_stands_above_all_in_standard_deviations() -> None:
    """Against the definition; a column of none and of negative strengths beside."""
    span = unit_rows(noise_rows(6, 10))
    table = np.zeros((6, 3))
    table[[5, 0, 2], 0] = 2.0, 1.0, 0.5
    table[[5, 0, 2, 1], 2] = 2.0, 1.0, 0.5, -3.0
    pulled = pulls(span, table)
    own = np.average(pulled[:, 0], weights=table[:, 0])
    expected = (own - pulled[:, 0].mean()) / pulled[:, 0].std()
    np.testing.assert_allclose(prominence(pulled, table), [expected, 0.0, expected], atol=1e-12)


@given(st.integers(2, 40), st.integers(1, 20))
def test_no_prominence_is_above_that_of_documents_parted_altogether(others: int, own: int) -> None:
    """n of N documents pulled, the others not: sqrt(N / n - 1), at any scale of pulls and strengths."""
    table = np.zeros((own + others, 2))
    table[:own] = 1.0, 3.0
    pulled = np.zeros_like(table)
    pulled[:own] = 1.0, 0.01
    np.testing.assert_allclose(prominence(pulled, table), np.sqrt(others / own), rtol=1e-9)


def test_what_pulls_all_documents_alike_has_no_prominence() -> None:
    table = np.ones((5, 1))
    assert prominence(np.full((5, 1), 0.3), table).tolist() == [0.0]
    assert prominence(np.zeros((0, 1)), np.zeros((0, 1))).tolist() == [0.0]
