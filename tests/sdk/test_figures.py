"""Figures of evaluations: one PNG for each target, whatever was and was not measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from atomscope.errors import MissingExtra
from atomscope.figures import plot_evaluation
from atomscope.types.evaluation import EvaluationResult
from tests.sdk.client.samples import evaluated_point, evaluated_target, evaluation_result

PNG = b"\x89PNG\r\n\x1a\n"


def result(*targets: dict[str, Any]) -> EvaluationResult:
    return msgspec.convert(evaluation_result(targets=list(targets)), EvaluationResult)


def width_and_height(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(PNG)
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def log_probabilities() -> dict[str, Any]:
    measure = {"value": -2.0, "low": -2.2, "high": -1.8, "n": 12, "hits": None}
    parts = {"inviting": measure, "neutral": measure, "overall": measure}
    points = [evaluated_point(strength, 0.3, **parts) for strength in (-0.2, -0.1)]
    base = {f"baseline_{name}": measure for name in ("inviting", "neutral")}
    return evaluated_target(target="8", points=points, baseline=measure, answers=[], **base)


NOT_COMPARED = evaluated_point(0.2, 0.4, equal_norm=None, equal_kl=None, unrelated=None, verdict=None)


def test_each_target_has_its_figure(tmp_path: Path) -> None:
    hostile = evaluated_target(name="$x_1$ \u202e 中 \x1b[31m")
    nothing = evaluated_target(target="6", points=[], curve=[], up=None, auto_up=None, verdict=None)
    not_compared = evaluated_target(target="9", points=[NOT_COMPARED], verdict=None)
    found = result(hostile, nothing, log_probabilities(), not_compared)
    paths = plot_evaluation(found, tmp_path / "deep" / "figures", kl_budget=0.5)
    names = [
        "behaviour-3.png",
        "behaviour-3-answers.png",
        "atom-6.png",
        "atom-6-answers.png",
        "atom-8.png",
        "atom-9.png",
        "atom-9-answers.png",
    ]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(names)
    for path in paths:
        width, height = width_and_height(path)
        assert width >= 600
        assert height >= (600 if "answers" not in path.name else 60)


def test_what_was_found_is_what_is_drawn(tmp_path: Path) -> None:
    changed = evaluated_target(points=[evaluated_point(-0.1, 0.02), evaluated_point(0.2, -0.9)])
    changed["points"][1]["equal_norm"]["shifts"] = [0.3] * 20
    beside = evaluated_target(points=[evaluated_point(-0.1, 0.02), evaluated_point(0.2, 0.4, unrelated=None)])
    contents = {
        plot_evaluation(result(target), tmp_path / str(place), 0.2)[0].read_bytes()
        for place, target in enumerate([evaluated_target(), changed, beside, evaluated_target()])
    }
    assert len(contents) == 3, "the same result gives the same bytes, another one others"


def test_answers_stand_side_by_side_whatever_is_in_them(tmp_path: Path) -> None:
    asked = {
        "kind": "neutral",
        "prompt": "p",
        "base": "one\ntwo",
        "up": "\x1b[31m$x_1$ \u202e 中" * 20,
        "down": None,
    }
    alone, two = ([asked], [asked, {**asked, "kind": "inviting"}])
    down = {"strength": -0.1, "shift": 0.1, "kl": 0.1, "verdict": "steers"}
    sizes = [
        width_and_height(plot_evaluation(result(found), tmp_path / str(place))[1])
        for place, found in enumerate(
            (
                evaluated_target(answers=alone),
                evaluated_target(answers=two),
                evaluated_target(answers=[{**asked, "down": "d"}], down=down),
            )
        )
    ]
    (width, height), (same, taller), (wider, _) = sizes
    assert same == width < wider, "a side without answers has no column"
    assert height < taller


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)

    class Absent:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name.partition(".")[0] == "matplotlib":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Absent, *sys.meta_path])
    with pytest.raises(MissingExtra, match="the figures extra") as caught:
        plot_evaluation(result(evaluated_target()), tmp_path / "figures")
    assert caught.value.line == "pip install 'atomscope[figures]'"
    assert not (tmp_path / "figures").exists()


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        plot_evaluation(result(evaluated_target()), tmp_path / "file" / "figures")
