"""Keywords tell a group from all other documents, by odds and not by counts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from atomscope_workers.pipeline.keywords import (
    LONGEST_TERM,
    PRIOR,
    Keywords,
    distinctive_keywords,
    left_out,
    log_odds,
    terms,
)

NOTHING = Keywords([], [], [])


def _keywords(texts: list[tuple[str, str]], group: list[int], most: int = 20) -> Keywords:
    return distinctive_keywords(texts, [np.array(group, dtype=np.int64)], most)[0]


def _plain(texts: list[str], group: list[int], most: int = 20) -> list[str]:
    return _keywords([("", text) for text in texts], group, most).anywhere


def test_the_score_is_the_difference_in_log_odds_over_its_standard_error() -> None:
    """By hand: 3 of 4 documents against 1 of 6, 4 of the 10 in all."""
    with_word, without = (3 + PRIOR * 0.4, 1 + PRIOR * 0.4), (1 + PRIOR * 0.6, 5 + PRIOR * 0.6)
    difference = math.log(with_word[0] / without[0]) - math.log(with_word[1] / without[1])
    error = math.sqrt(sum(1 / count for count in (*with_word, *without)))
    found = log_odds(np.array([3.0]), 4, np.array([1.0]), 6, np.array([0.4]))
    assert found == pytest.approx([difference / error])
    mirrored = log_odds(np.array([1.0]), 6, np.array([3.0]), 4, np.array([0.4]))
    assert mirrored == pytest.approx(-found)


def test_a_word_in_every_document_is_nobodys() -> None:
    texts = [f"please the {'tea' if place < 6 else 'car'} {place}" for place in range(20)]
    assert _plain(texts, list(range(6))) == ["tea"]


def test_a_word_repeated_in_one_document_counts_once() -> None:
    texts = ["tea " + "spam " * 500, *(["tea"] * 5), *(["car"] * 10), "spam car"]
    assert _plain(texts, list(range(6))) == ["tea"]


def test_a_rare_exact_word_gives_way_to_a_frequent_one_that_says_as_much() -> None:
    texts = ["tea pot", "tea pot", *(["tea"] * 8), *(["car"] * 40)]
    assert _plain(texts, list(range(10))) == ["tea", "pot"]


def test_common_words_that_a_group_holds_like_all_others_are_left_out() -> None:
    texts = [f"{'the' if place % 2 else 'a1'} {'tea' if place < 10 else 'car'}" for place in range(60)]
    assert _plain(texts, list(range(10))) == ["tea"]


def test_prompts_and_responses_are_told_apart() -> None:
    texts = [("ask password", "no sorry")] * 6 + [("ask weather", "it rains")] * 12
    found = _keywords(texts, list(range(6)))
    assert found == Keywords(["no", "password", "sorry"], ["password"], ["no", "sorry"])


@pytest.mark.parametrize(
    ("texts", "group"),
    [
        ([], []),
        ([("tea", "tea")], [0]),
        ([("tea", "tea")] * 2, [0, 1]),
        ([("", ""), ("?!", "...")], [0]),
        ([("tea", ""), ("car", "")], []),
        ([("tea pot", ""), ("car", ""), ("car", "")], [0]),
    ],
    ids=["no text", "one", "all", "no word", "empty group", "a document's own words"],
)
def test_nothing_to_contrast_gives_no_keyword(texts: list[tuple[str, str]], group: list[int]) -> None:
    assert _keywords(texts, group) == NOTHING


def test_two_documents_of_six_are_enough() -> None:
    assert _plain(["tea", "tea", "car", "bus", "car", "bus"], [0, 1]) == ["tea"]


def test_ties_go_by_the_alphabet_and_the_same_texts_give_the_same_lists() -> None:
    texts = [("", "beta alpha gamma")] * 4 + [("", "other")] * 9
    assert _keywords(texts, [3, 1, 0, 2]).anywhere == ["alpha", "beta", "gamma"]
    assert _keywords(texts, [3, 1, 0, 2]) == _keywords(texts, [0, 1, 2, 3])
    assert distinctive_keywords(texts, [np.arange(4)], 20, limit=2)[0].anywhere == ["alpha", "beta"]


def test_the_first_documents_are_compared_with_those_that_are_not_active() -> None:
    """Weaker documents of the group stand on neither side; as others they would hide its word."""
    texts = ["tea"] * 20 + ["car"] * 20
    assert _plain(texts, list(range(20)), most=4) == ["tea"]
    assert left_out(40, np.arange(20), np.arange(4)).tolist() == list(range(20))


def test_where_nearly_all_are_active_the_group_is_compared_with_all_that_are_not_in_it() -> None:
    assert left_out(10, np.arange(8), np.arange(4)).tolist() == [0, 1, 2, 3]
    assert _plain(["tea"] * 4 + ["car"] * 6, list(range(8)), most=4) == ["tea"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The CAT's 42 a", ["the", "cat", "42"]),
        ("snake_case", ["snake_case"]),
        ("x" * (LONGEST_TERM + 1), []),
        ("x" * LONGEST_TERM, ["x" * LONGEST_TERM]),
        ("Grüße", ["grüße"]),
        ("你好吗 tea", ["你好", "好吗", "tea"]),
        ("你 です", ["です"]),
    ],
)
def test_words_of_scripts_with_and_without_spaces(text: str, expected: list[str]) -> None:
    assert terms(text) == expected
