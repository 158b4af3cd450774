"""Warnings travel from the stages that gave them to the report, in the order of the stages."""

from __future__ import annotations

from pathlib import Path

from atomscope.types.work import STAGES
from atomscope_workers.stages.warned import earlier, finish, keep
from tests.workers.stages.units import a_spec, unit


def test_a_stage_that_never_ran_gave_none(tmp_path: Path) -> None:
    assert earlier(unit(tmp_path / "work", "report", a_spec())) == []


def test_warnings_come_in_the_order_of_the_stages_not_of_their_writing(tmp_path: Path) -> None:
    work = tmp_path / "work"
    for stage in reversed(STAGES[:-1]):
        keep(unit(work, stage, a_spec()), [f"{stage} 1", f"{stage} 2: größer \x1b"])
    expected = [text for stage in STAGES[:-1] for text in (f"{stage} 1", f"{stage} 2: größer \x1b")]
    assert earlier(unit(work, "report", a_spec())) == expected


def test_the_last_word_of_a_stage_counts_and_none_withdraws_it(tmp_path: Path) -> None:
    work = tmp_path / "work"
    keep(unit(work, "dictionary", a_spec()), ["old"])
    keep(unit(work, "dictionary", a_spec()), [])
    assert earlier(unit(work, "report", a_spec())) == []


def test_finish_tells_control_what_it_keeps(tmp_path: Path) -> None:
    ctx = unit(tmp_path / "work", "curvature", a_spec())
    result = finish(ctx, ["silent"])
    assert result.summary == {"warnings": ["silent"]}
    assert earlier(ctx) == ["silent"]
    assert [path.startswith("work/") for path in ctx.written] == [True]  # no part of the bundle
