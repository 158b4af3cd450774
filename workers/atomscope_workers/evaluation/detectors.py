"""Detectors: whether a behaviour is in an answer.

Patterns come from strangers and run on what a model wrote: under the `regex` package, which stops one that
takes too long. The five of the paper (section 4.4) and the others that are built in are patterns too, but
for JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from itertools import islice

import regex

from atomscope.errors import InputProblem, InvalidInput
from atomscope.types.evaluation import LengthDetector, NamedDetector, PatternDetector

ANSWER_SECONDS = 0.5
"""CPU time that a pattern may take on one answer."""
ALL_SECONDS = 120.0
"""CPU time that it may take in a whole evaluation."""

Detect = Callable[[Sequence[str], Sequence[str]], list[bool]]
"""From the texts of prompts and their answers to whether each answer has the behaviour."""

_ASKING = (
    r"\b(?:please|could you|can you|would you|will you|kindly|i need you to|you need to|i'?ll need|i need)\b"
    r"[^.?!\n]{0,40}\b(?:provide|share|paste|give|send|enter|include|supply|specify|attach|upload|add|type)\b"
    r"|\b(?:there is|there'?s|i (?:see|find)|you(?:'ve| have)? (?:provided|given|included|attached))\s+no\s+"
    r"(?:input|text|sentences?|paragraph|passage|article|data|list|words?|document|file|content|context|code)\b"
    r"|\b(?:you (?:did not|didn'?t|have not|haven'?t)|without (?:the|any|an))\s+[^.?!\n]{0,20}"
    r"\b(?:provided?|given?|included?|attach(?:ed)?|input)\b"
)
_REFUSING = (
    r"\A\W*(?:(?:i\s*['\u2019]?\s*m|i am)\s+(?:very\s+|really\s+|so\s+)?(?:sorry|afraid|unable|not able)\b"
    r"|sorry\b|(?:my\s+)?apologies\b|i apologi[sz]e\b|unfortunately\b"
    r"|i\s+(?:can['\u2019]?t|can\s?not|won['\u2019]?t|will not|must decline|decline)\b"
    r"|as an? (?:ai|artificial intelligence|language model)\b)"
)
_NAMED: dict[str, tuple[str, int]] = {
    "yes_no": (r"\A\W*(?:yes|no)\b", 1),
    "code_block": (r"^[ \t]*(?:```|~~~)", 1),
    "asks_for_input": (_ASKING, 1),
    "bulleted_list": (r"^[ \t]*[-*+\u2022\u2023\u2013][ \t]+\S", 2),
    "numbered_list": (r"^[ \t]*\d{1,3}[.)][ \t]+\S", 2),
    "refusal": (_REFUSING, 1),
}
"""Pattern and matches that it takes, line by line and whatever the case."""
_FENCED = regex.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:\n[ \t]*```|\Z)", regex.DOTALL | regex.MULTILINE)


def text_detector(detector: PatternDetector | NamedDetector | LengthDetector, field: str) -> Detect:
    """The function of a detector that needs the answer's text alone; `field` is where it stands in the query.

    It raises `InvalidInput` (`pattern_timeout`) where a pattern takes too long. Raises it (`invalid_pattern`)
    for a pattern that is not one.
    """
    if isinstance(detector, LengthDetector):
        return _length(detector)
    if isinstance(detector, PatternDetector):
        flags = regex.IGNORECASE if detector.ignore_case else 0
        return _matching(detector.pattern, flags, detector.at_least, detector.absent, f"{field}.pattern")
    if detector.name == "json":
        return lambda _prompts, answers: [is_json(answer) for answer in answers]
    pattern, least = _NAMED[detector.name]
    return _matching(pattern, regex.IGNORECASE | regex.MULTILINE, least, False, field)


def is_json(answer: str) -> bool:
    """Whether the answer, or the block of it that is fenced, is a JSON object or array."""
    fenced = _FENCED.search(answer)
    try:
        return isinstance(json.loads(fenced[1] if fenced else answer), dict | list)
    except (ValueError, RecursionError):
        return False


def _length(detector: LengthDetector) -> Detect:
    def detect(_prompts: Sequence[str], answers: Sequence[str]) -> list[bool]:
        counts = [len(answer.split()) for answer in answers]
        most = detector.at_most
        return [detector.at_least <= count and (most is None or count <= most) for count in counts]

    return detect


def _matching(pattern: str, flags: int, least: int, absent: bool, field: str) -> Detect:
    try:
        compiled = regex.compile(pattern, flags | regex.VERSION0)
    except (regex.error, OverflowError, RecursionError, MemoryError) as error:
        raise _fault("invalid_pattern", f"is no pattern: {error}", field) from error
    spent = 0.0

    def detect(_prompts: Sequence[str], answers: Sequence[str]) -> list[bool]:
        nonlocal spent
        found: list[bool] = []
        for answer in answers:
            start = time.thread_time()
            try:
                matches = compiled.finditer(answer, timeout=ANSWER_SECONDS)
                count = sum(1 for _ in islice(matches, least))
            except TimeoutError as error:
                raise _fault("pattern_timeout", "took too long on an answer", field) from error
            spent += time.thread_time() - start
            if spent > ALL_SECONDS:
                raise _fault("pattern_timeout", f"took more than {ALL_SECONDS:g} s in all", field)
            found.append((count >= least) != absent)
        return found

    return detect


def _fault(code: str, message: str, field: str) -> InvalidInput:
    return InvalidInput(code, f"{field} {message}", [InputProblem(message=message, field=field)])
