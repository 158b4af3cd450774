"""`atomscope audit refit`: what it asks of the pipeline, and what it refuses before anything is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atomscope.cli import main

AUDIT = f"aud_{7:032x}"


def told(capsys: pytest.CaptureFixture[str], *line: str) -> tuple[int, str]:
    status = main(["audit", "refit", *line, "--json"])
    answer: Any = json.loads(capsys.readouterr().out)
    return status, answer["error"]["detail"]


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (["./bundle"], "a bundle needs --out BUNDLE"),
        (["./bundle", "--out", "x", "--name", "n"], "--name has no meaning for a bundle"),
        (["./bundle", "--out", "x", "--no-wait"], "--no-wait has no meaning for a bundle"),
        (["./bundle", "--out", "x", "--base-url", "http://h"], "--base-url has no meaning for a bundle"),
        ([AUDIT, "--out", "x"], "--out has no meaning for an audit of the service"),
        ([AUDIT, "--base-model", "x"], "--base-model has no meaning for an audit of the service"),
        ([AUDIT, "--no-wait", "--timeout", "3"], "--timeout says how long to wait"),
        (["./bundle", "--n-atoms", "0"], "not a whole number >= 1: '0', or auto"),
        (["./bundle", "--preconditioner", "none"], "invalid choice"),
    ],
)
def test_what_has_no_meaning_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], line: list[str], detail: str
) -> None:
    status, error = told(capsys, *line)
    assert status == 4
    assert detail in error


def test_a_setting_given_twice_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "more.toml").write_text("seed = 3\n")
    status, error = told(
        capsys, "./bundle", "--out", "x", "--seed", "4", "--config", str(tmp_path / "more.toml")
    )
    assert (status, error.endswith("both give seed")) == (4, True)
