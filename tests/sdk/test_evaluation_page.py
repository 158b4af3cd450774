"""One page of an evaluation: all of it is there, nothing of it runs, and it is written whole."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from atomscope.evaluation_page import evaluation_page, write_evaluation
from atomscope.types.evaluation import EvaluationResult
from tests.sdk.client.samples import evaluated_point, evaluated_target, evaluation_result

HOSTILE = "<script>alert(1)</script>\n<img src=x onerror=y> \" ' & \x1b[31m \u202e"


class Reader(HTMLParser):
    """Tags that were opened, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def result(*targets: dict[str, Any], **more: Any) -> EvaluationResult:
    return msgspec.convert(evaluation_result(targets=list(targets), **more), EvaluationResult)


def test_all_that_was_found_is_on_it() -> None:
    nothing = evaluated_target(
        target="6", points=[], curve=[], answers=[], others={}, up=None, auto_up=None, verdict=None
    )
    found = result(evaluated_target(), nothing, warnings=["few prompts"])
    read = Reader(evaluation_page(found, 0.5))
    first = found.targets[0]
    assert read.text.count("behaviour:3") >= 2
    told = [first.verdict or "", "few prompts", "none within the budget", *first.others]
    told += [text for answer in first.answers for text in (answer.prompt, answer.base, answer.up or "")]
    told += [f"{point.inviting.value:.0%}" for point in first.points]
    told += ["gain +0.100 nats per token from the least step up, less the same down.", "unrelated atom"]
    assert [item for item in told if item not in read.text] == []
    images = [attributes["src"] or "" for tag, attributes in read.tags if tag == "img"]
    assert len(images) == 2
    for image in images:
        kind, _, content = image.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content).startswith(b"\x89PNG")


def test_the_shift_of_an_unrelated_atom_and_a_gain_below_0_are_told() -> None:
    moved = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 48, "hits": 24}
    baseline = {"value": 0.25, "low": 0.2, "high": 0.3, "n": 48, "hits": 12}
    found = result(
        evaluated_target(points=[evaluated_point(-0.1, 0.02, unrelated=moved)], baseline=baseline, gain=-0.1)
    )
    text = Reader(evaluation_page(found)).text
    assert "-25 points" in text
    assert "The unrelated atom is 5." in text
    assert "up is no more of them" in text


def test_what_others_wrote_is_text_and_nothing_is_fetched() -> None:
    answer = {"kind": "inviting", "prompt": HOSTILE, "base": HOSTILE, "up": HOSTILE, "down": None}
    page = evaluation_page(result(evaluated_target(name=HOSTILE, answers=[answer]), warnings=[HOSTILE]))
    read = Reader(page)
    assert {tag for tag, _ in read.tags}.isdisjoint({"script", "iframe", "link", "a", "object"})
    assert all(not name.startswith("on") for _, attributes in read.tags for name in attributes)
    assert all((item.get("src") or "data:").startswith("data:") for _, item in read.tags)
    assert "<script>alert(1)</script>" in read.text
    assert not re.search("[\x1b\u202e]", page)
    policy = next(item["content"] for tag, item in read.tags if tag == "meta" and "http-equiv" in item)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_it_takes_the_place_of_the_one_before_or_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert write_evaluation(result(evaluated_target()), path) == path
    first = path.read_bytes()
    write_evaluation(result(evaluated_target(name="other")), str(path))
    assert path.read_bytes() != first
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="missing"):
        write_evaluation(result(evaluated_target()), tmp_path / "missing" / "page.html")
