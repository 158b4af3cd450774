"""`atomscope steer ... TARGET=auto`: as far as the budget allows, by an evaluation without a detector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from atomscope.bundle import Bundle
from atomscope.client import _jobs
from atomscope.steering.output import EVALUATION
from atomscope.types.evaluation import CostPoint, EvaluationQuery, EvaluationResult
from tests.sdk.cli.running import Run
from tests.sdk.client.samples import (
    AUDIT,
    an_id,
    audit,
    evaluated_target,
    evaluation,
    evaluation_result,
    steered,
)
from tests.sdk.client.server import Answer, ScriptedServer


class Runner:
    """Stands for the pipeline: as far as was told, for every target."""

    def __init__(self, up: float | None = 0.25, down: float | None = -0.125) -> None:
        self.ends = {"auto_up": up, "auto_down": down}
        self.asked: list[EvaluationQuery] = []

    def evaluate(self, bundle: Bundle, base_model: Path, query: EvaluationQuery, on_progress: Any) -> Any:
        self.asked.append(query)
        targets = [evaluated_target(target=item.target, points=[], **self.ends) for item in query.targets]
        return msgspec.convert(evaluation_result(targets=targets), EvaluationResult)


def test_auto_is_the_largest_strength_within_the_budget(
    run: Run, local: Any, bundle: Path, tmp_path: Path
) -> None:
    runner = local(Runner())
    budgets = ("--kl-budget", "0.2", "--perplexity-budget", "1.5")
    how = ("--base-model", "base", *budgets, "--format", "vector", "--unit", "alpha")
    done = run("steer", bundle, "5=auto", "0=-auto", *how, "--out", tmp_path / "s", "--json")
    assert (done.status, done.err) == (0, "")
    assert done.json()["strengths"] == {"5": 0.25, "0": -0.125}
    (query,) = runner.asked
    assert [item.target for item in query.targets] == ["5", "0"]
    assert all(item.detector is None for item in query.targets)
    assert (query.kl_budget, query.perplexity_budget) == (0.2, 1.5)
    assert (query.unit, query.strengths) == ("alpha", "auto")
    told = json.loads((tmp_path / "s" / "atomscope_steering.json").read_text())
    assert told["strengths"] == {"5": 0.25, "0": -0.125}


def test_the_curve_that_a_strength_was_found_on_lies_beside_the_adapter(
    run: Run, local: Any, bundle: Path, tmp_path: Path
) -> None:
    local(Runner())
    out = tmp_path / "s"
    run("steer", bundle, "5=auto", "--base-model", "base", "--out", out)
    kept = msgspec.json.decode((out / EVALUATION).read_bytes(), type=EvaluationResult)
    assert kept.targets[0].curve == msgspec.convert(evaluated_target()["curve"], list[CostPoint])
    assert run("steer", bundle, "5=-auto", "--base-model", "base", "--out", out).status == 0, "saved again"
    assert run("steer", bundle, "5=0.1", "--out", out).status == 0
    assert not (out / EVALUATION).exists(), "of an adapter that is no longer there"


def test_numbers_stand_beside_auto_and_what_was_found_is_told(
    run: Run, local: Any, bundle: Path, tmp_path: Path
) -> None:
    runner = local(Runner())
    done = run("steer", bundle, "5=+auto", "0=0.5", "--base-model", "base", "--out", tmp_path / "s")
    assert (done.status, done.err) == (0, "5=auto is 0.25\n")
    assert [item.target for item in runner.asked[0].targets] == ["5"]


def test_a_budget_that_allows_nothing_is_an_error(run: Run, local: Any, bundle: Path, tmp_path: Path) -> None:
    local(Runner(down=None))
    done = run("steer", bundle, "5=-auto", "--base-model", "base", "--out", tmp_path / "s")
    assert (done.status, done.out) == (1, "")
    assert "5=-auto: no strength costs as little as 0.5 nats per token" in done.err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["5=auto"], "--base-model DIR"),
        (["5=auto", "--base-model", "base", "--timeout", "3"], "--timeout has no meaning"),
        (["5=auto", "--base-model", "base", "--kl-budget", "0"], "kl_budget"),
        (["5=auto", "5=0.1", "--base-model", "base"], "two strengths"),
        (["5=0.1", "--kl-budget", "1"], "--kl-budget is for a strength of auto"),
        (["5=auto", "--base-model", "base", "--perplexity-budget", "1"], "perplexity_budget"),
        (["5=0.1", "--perplexity-budget", "2"], "--perplexity-budget is for a strength of auto"),
        (["5=0.1", "--base-model", "base"], "--base-model is for a strength of auto"),
        (["5=automatic"], "not TARGET=STRENGTH"),
        (["5=nan"], "not TARGET=STRENGTH"),
        (["5=auto", "--base-model", "base", "--name", "n"], "--name is for"),
    ],
)
def test_what_cannot_be_asked_is_a_usage_error(
    run: Run, local: Any, bundle: Path, tmp_path: Path, flags: list[str], told: str
) -> None:
    runner = local(Runner())
    done = run("steer", bundle, *flags, "--out", tmp_path / "s")
    assert (done.status, done.out) == (4, "")
    assert told in done.err
    assert runner.asked == []


def test_an_audit_is_evaluated_and_then_steered_by_the_service(
    run: Run, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_jobs, "FIRST_PAUSE", 0.01)
    result = evaluation_result(targets=[evaluated_target(points=[])])
    server.on("GET", f"/v1/audits/{AUDIT}", Answer(200, audit("succeeded")))
    server.on("POST", f"/v1/audits/{AUDIT}/evaluations", Answer(202, evaluation("succeeded", result=result)))
    server.on("POST", "/v1/steered-adapters", Answer(201, steered()))
    server.on(
        "GET", f"/v1/steered-adapters/{an_id('str')}/download", Answer(200, {"id": an_id("str"), "files": []})
    )
    run("steer", AUDIT, "behaviour:3=auto", "--out", tmp_path / "s")
    (asked,) = server.to("POST", "/v1/steered-adapters")
    assert asked.json()["strengths"] == {"behaviour:3": 0.2}
