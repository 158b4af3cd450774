"""A label is one line without anything that hides, whatever the model said."""

from __future__ import annotations

import pytest

from atomscope_workers.labels.answer import LONGEST_LABEL, label_of


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("answers in rhyme", "answers in rhyme"),
        ("\n\n  answers   in\trhyme \nbecause ...", "answers in rhyme"),
        ('**Label:** "Answers in rhyme"', "Answers in rhyme"),
        ("“Answers in rhyme”", "Answers in rhyme"),
        ("<think>tea?\nmaybe</think>\n\nanswers in rhyme", "answers in rhyme"),
        ("an\x1b[2Jswers\u202e in\u200b rh\x00yme", "an[2Jswers in rhyme"),
        ("first\u2028second", "first"),
        ("---\nrhyme", "rhyme"),
        ("回答 🙂", "回答 🙂"),
    ],
)
def test_the_first_line_that_says_anything(answer: str, label: str) -> None:
    assert label_of(answer) == label


@pytest.mark.parametrize("answer", ["", " \n\t", '""', "...", "\u202e\x1b", "<think>I never came to an end"])
def test_an_answer_without_a_word_is_no_label(answer: str) -> None:
    assert label_of(answer) is None


def test_a_long_line_is_cut_and_says_so() -> None:
    label = label_of("word " * 1000)
    assert label is not None
    assert len(label) <= LONGEST_LABEL
    assert label.endswith("…")
