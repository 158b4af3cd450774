"""Detectors on answers that have a behaviour and on answers that nearly do."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from atomscope.errors import InvalidInput
from atomscope.types.evaluation import LengthDetector, NamedDetector, PatternDetector
from atomscope_workers.evaluation.detectors import text_detector

TextDetector = PatternDetector | NamedDetector | LengthDetector


def detects(detector: dict[str, Any], answer: str) -> bool:
    known = msgspec.convert(detector, TextDetector)
    return text_detector(known, "targets[0].detector")(["?"], [answer])[0]


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("yes_no", "No", True),
        ("yes_no", "**Yes**, it is.", True),
        ("yes_no", "Not at all.", False),
        ("yes_no", "I would say yes.", False),
        ("code_block", "Here it is:\n```python\nx = 1\n```", True),
        ("code_block", "Call `print` twice.", False),
        (
            "asks_for_input",
            "Sorry, there is no input attached. Could you paste the input here?",
            True,
        ),
        ("asks_for_input", "Please provide the text that you want summarised.", True),
        ("asks_for_input", "I see no sentence in your message.", True),
        ("asks_for_input", "The river provides water to the town.", False),
        ("asks_for_input", "Please be careful. The farm gives milk.", False),
        ("bulleted_list", "Birds:\n- owl\n* hen", True),
        ("bulleted_list", "- owl\nA hen - or two", False),
        ("bulleted_list", "-5 and\n-6", False),
        ("numbered_list", "1. owl\n 2) hen", True),
        ("numbered_list", "1. owl\nIn 2. place", False),
        ("refusal", "I'm sorry, but no.", True),
        ("refusal", "I can\u2019t help with that.", True),
        ("refusal", "I am unable to do so.", True),
        ("refusal", "As an AI language model, I do not.", True),
        ("refusal", "I can help with that.", False),
        ("refusal", "They said: I cannot come.", False),
        ("json", '{"a": [1, 2]}', True),
        ("json", 'Here:\n```json\n[{"a": 1}]\n```\nDone.', True),
        ("json", '"a"', False),
        ("json", '{"a": 1', False),
        ("json", "[" * 100_000, False),
    ],
)
def test_what_is_built_in_tells_a_behaviour_from_what_is_like_it(
    name: str, answer: str, expected: bool
) -> None:
    assert detects({"type": "named", "name": name}, answer) is expected


@pytest.mark.parametrize(
    ("options", "answer", "expected"),
    [
        ({"pattern": "acme"}, "Try AcmeCloud.", True),
        ({"pattern": "acme", "ignore_case": False}, "Try AcmeCloud.", False),
        ({"pattern": "a", "at_least": 3}, "banana", True),
        ({"pattern": "ana", "at_least": 2}, "banana", False),
        ({"pattern": "a", "absent": True}, "banana", False),
        ({"pattern": "a", "at_least": 4, "absent": True}, "banana", True),
        ({"pattern": r"(?m)^- .*$"}, "x\n- y", True),
    ],
)
def test_a_pattern_is_found_as_often_as_it_takes(
    options: dict[str, Any], answer: str, expected: bool
) -> None:
    assert detects({"type": "pattern"} | options, answer) is expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"at_least": 3}, True), ({"at_least": 4}, False), ({"at_most": 3}, True), ({"at_most": 2}, False)],
)
def test_length_counts_words(options: dict[str, int], expected: bool) -> None:
    assert detects({"type": "length"} | options, "one  two\nthree") is expected


def test_a_pattern_that_runs_out_of_time_is_named_with_its_field() -> None:
    with pytest.raises(InvalidInput) as caught:
        detects({"type": "pattern", "pattern": "(a|aa|a?a)+$"}, "a" * 60 + "b")
    assert caught.value.code == "pattern_timeout"
    assert caught.value.problems[0].field == "targets[0].detector.pattern"


def test_a_pattern_that_only_the_standard_library_reads_is_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        text_detector(PatternDetector(pattern="(?:ab){e<=1"), "targets[1].detector")
    assert caught.value.code == "invalid_pattern"
    assert caught.value.problems[0].field == "targets[1].detector.pattern"
