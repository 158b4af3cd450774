"""Text that nobody vouches for is shown on one line and does nothing to a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomscope.text import counted, visible

ANYTHING = st.text(alphabet=st.characters(codec=None, categories=None), max_size=60)


@given(text=ANYTHING)
def test_nothing_that_acts_is_left(text: str) -> None:
    shown = visible(text)
    assert not {unicodedata.category(character) for character in shown} & {
        "Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp",
    }  # fmt: skip
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")


@given(text=st.text(alphabet=st.characters(categories=["L", "N", "P", "S", "M", "Zs"]), max_size=60))
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\x00\x7f\x9b", "\\x00\\x7f\\x9b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u200bb\ufeff", "a\\u200bb\\ufeff"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("Grüße 你好 🙂", "Grüße 你好 🙂"),
    ],
)
def test_an_escape_says_which_character_it_was(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(text=ANYTHING, limit=st.integers(1, 80))
def test_a_limit_counts_characters_of_the_text_and_a_cut_is_marked(text: str, limit: int) -> None:
    shown = visible(text, limit)
    if len(text) <= limit:
        assert shown == visible(text)
    else:
        assert shown == visible(text[: limit - 1]) + "…"


def test_one_is_counted_in_the_singular() -> None:
    assert [counted(count, "row") for count in range(3)] == ["0 rows", "1 row", "2 rows"]
    assert [counted(count, "row was", "rows were") for count in (1, 2)] == ["1 row was", "2 rows were"]


def test_a_limit_of_nothing_shows_only_that_something_was_there() -> None:
    assert visible("abc", 0) == "…"
    assert visible("", 0) == ""
