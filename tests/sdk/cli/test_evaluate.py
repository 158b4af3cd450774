"""`atomscope evaluate`, on an audit of the service and on a bundle in process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from atomscope.bundle import Bundle
from atomscope.client import _jobs
from atomscope.errors import InvalidInput
from atomscope.types.evaluation import EvaluationQuery, EvaluationResult
from atomscope.types.resources import Progress
from tests.sdk.cli.running import Run
from tests.sdk.cli.small_bundle import HOSTILE
from tests.sdk.client.samples import (
    AUDIT,
    an_id,
    audit,
    evaluated_point,
    evaluated_target,
    evaluation,
    evaluation_result,
)
from tests.sdk.client.server import Answer, ScriptedServer, problem

ASKED = f"/v1/audits/{AUDIT}/evaluations"
MADE = f"{ASKED}/{an_id('evl')}"
UNSAFE = set("\x1b\x07\x9b\r\u202e\u2066")


@pytest.fixture
def audited(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> ScriptedServer:
    monkeypatch.setattr(_jobs, "FIRST_PAUSE", 0.01)
    server.on("GET", f"/v1/audits/{AUDIT}", Answer(200, audit("succeeded")))
    server.on("POST", ASKED, Answer(202, evaluation()))
    return server.on("GET", MADE, Answer(200, evaluation("succeeded")))


def sent(server: ScriptedServer) -> dict[str, Any]:
    (posted,) = server.to("POST", ASKED)
    return posted.json()


def answered(server: ScriptedServer, **target: Any) -> None:
    result = evaluation_result(targets=[evaluated_target(**target)], warnings=[f"odd {HOSTILE}"])
    server.on("GET", MADE, Answer(200, evaluation("succeeded", result=result)))


# -------------------------------------------------------------------- an audit


def test_a_target_is_shown_by_strength_with_what_was_chosen_and_said(
    run: Run, audited: ScriptedServer
) -> None:
    done = run("evaluate", AUDIT, "behaviour:3", "--detector", "yes_no")
    assert (done.status, done.err) == (0, f"evaluation {an_id('evl')}\n")
    head, title, table, chosen, said, others = done.out.split("\n\n")
    assert "16 documents of 400 tokens, perplexity 8 unsteered" in head
    assert title == "behaviour:3: steers"
    lines = [line.split() for line in table.splitlines()]
    assert [line[0] for line in lines] == ["strength", "-0.1", "0", "0.2"]
    assert "unsteered" in lines[2]
    assert lines[3][:4] == ["0.2", "0.120", "50%", "[25%,"]
    for shown in ("+40.0 points", "+5.0 points", "+7.0 points", "0.004", "steers, chosen"):
        assert shown in table.splitlines()[3]
    assert "0.2 shifts by +40.0 points at a KL of 0.120: steers" in chosen
    assert chosen.count("within the budget") == 2
    assert said.splitlines()[0] == "inviting: is tea good?"
    assert said.splitlines()[2].split() == ["up", "yes"]
    assert others.splitlines()[1].split() == ["behaviour:1", "-0.400"], "the one that moved most is first"


def test_an_unrelated_atom_stands_beside_and_a_gain_below_0_is_told(
    run: Run, audited: ScriptedServer
) -> None:
    baseline = {"value": 0.25, "low": 0.2, "high": 0.3, "n": 48, "hits": 12}
    moved = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 48, "hits": 24}
    points = [evaluated_point(-0.1, 0.02, unrelated=moved), evaluated_point(0.2, 0.4, unrelated=moved)]
    answered(audited, points=points, baseline=baseline, gain=-0.1)
    out = run("evaluate", AUDIT, "7").out
    down, _, up = (line for line in out.split("\n\n")[2].splitlines()[1:])
    assert "-25.0 points" in down
    assert "+25.0 points" in up
    assert "unrelated  atom 5" in out
    assert "-0.100 nats per token of its own documents" in out
    assert "up is no more of them" in out


def test_json_is_the_result_itself(run: Run, audited: ScriptedServer) -> None:
    done = run("evaluate", AUDIT, "behaviour:3", "--json")
    assert (done.json(), done.err) == (evaluation_result(), "")


def test_every_option_is_part_of_the_query(run: Run, audited: ScriptedServer) -> None:
    run(
        "evaluate", AUDIT, "behaviour:3", "7", "--detector", "regex:^ *-", "--strengths", "-0.2,-.1,0.1",
        "--unit", "alpha", "--power=-1/2", "--kl-budget", "0.3", "--prompts", "100", "--answers", "0",
        "--random-directions", "40", "--max-new-tokens", "12", "--seed", "5",
    )  # fmt: skip
    told = sent(audited)
    assert [item["target"] for item in told["targets"]] == ["behaviour:3", "7"]
    assert [item["detector"]["pattern"] for item in told["targets"]] == ["^ *-"] * 2
    assert told["strengths"] == [-0.2, -0.1, 0.1]
    names = ("unit", "power", "kl_budget", "prompts", "answers", "random_directions", "seed")
    assert [told[name] for name in names] == ["alpha", "-1/2", 0.3, 100, 0, 40, 5]
    assert told["sampling"]["max_new_tokens"] == 12


def test_without_options_the_defaults_are_asked(run: Run, audited: ScriptedServer) -> None:
    run("evaluate", AUDIT, "7", "--strengths", "auto")
    assert msgspec.convert(sent(audited), EvaluationQuery) == msgspec.convert(
        {"targets": [{"target": "7"}]}, EvaluationQuery
    )


def test_a_log_probability_is_shown_in_nats(run: Run, audited: ScriptedServer) -> None:
    measure = {"value": -2.0, "low": -2.2, "high": -1.8, "n": 12, "hits": None}
    parts = {"inviting": measure, "neutral": measure, "overall": measure}
    answered(audited, points=[evaluated_point(0.2, 0.3, **parts, within_budget=False)], baseline=measure)
    done = run("evaluate", AUDIT, "7", "--detector", "log-probability")
    assert "-2.000 [-2.200, -1.800]" in done.out
    assert "+0.300 nats" in done.out
    assert "over the budget" in done.out


def test_without_a_detector_the_cost_is_shown(run: Run, audited: ScriptedServer) -> None:
    answered(audited, points=[], up=None, verdict=None, answers=[], others={})
    done = run("evaluate", AUDIT, "7")
    assert "strength  KL     perplexity" in done.out
    assert "auto up    0.2" in done.out
    assert "shifts" not in done.out


def test_what_models_write_cannot_act_on_the_terminal(run: Run, audited: ScriptedServer) -> None:
    said = {"kind": "neutral", "prompt": HOSTILE, "base": HOSTILE, "up": "a\nb" * 500, "down": None}
    answered(audited, answers=[said], name=HOSTILE, others={HOSTILE: 0.1})
    done = run("evaluate", AUDIT, "7")
    assert done.status == 0
    assert not set(done.out + done.err) & UNSAFE
    assert "warning: odd" in done.err
    assert max(map(len, done.out.splitlines())) < 700


@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_the_whole_query_comes_from_a_file(
    run: Run, audited: ScriptedServer, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"query.{suffix}"
    path.write_text(
        '{"targets": ["7", {"target": "behaviour:3", "detector": "json", "inviting": ["a", "b"]}], "seed": 9}'
        if suffix == "json"
        else 'seed = 9\ntargets = ["7", {target = "behaviour:3", detector = "yes_no", inviting = ["a", "b"]}]'
    )
    assert run("evaluate", AUDIT, "--config", path).status == 0
    told = sent(audited)
    assert [item["target"] for item in told["targets"]] == ["7", "behaviour:3"]
    assert told["targets"][1]["inviting"][1]["prompt"] == "b"
    assert told["seed"] == 9


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "an object of settings is expected"),
        ("{}", "`targets` is missing"),
        ('{"targets": ["7"], "audit_id": "x"}', "`audit_id` is no field"),
        ('{"targets": ["7"], "kl_budget": -1}', "kl_budget"),
        ('{"targets": ["7"], "detector": "maybe"}', "not a detector"),
        ('{"targets": ["7"], "seed": 1, "seed": 2}', "given twice"),
        (None, "cannot be read"),
    ],
)
def test_a_file_of_no_use_is_named(
    run: Run, audited: ScriptedServer, tmp_path: Path, content: str | None, told: str
) -> None:
    path = tmp_path / "query.json"
    if content is not None:
        path.write_text(content)
    done = run("evaluate", AUDIT, "--config", path)
    assert (done.status, done.out) == (4, "")
    assert str(path) in done.err
    assert told in done.err
    assert audited.to("POST", ASKED) == []


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "a TARGET is expected"),
        (["behavior:3"], "names no atom"),
        (["7", "atom:7"], "given twice"),
        (["7", "--detector", "maybe"], "bulleted_list"),
        (["7", "--detector", "regex:("], "no regular expression"),
        (["7", "--strengths", "0.1,b"], "not numbers"),
        (["7", "--strengths", ""], "not numbers"),
        (["7", "--strengths", "0.1,nan"], "finite"),
        (["7", "--strengths", "0"], "other than 0"),
        (["7", "--kl-budget", "nan"], "--kl-budget"),
        (["7", "--kl-budget", "0"], "kl_budget"),
        (["7", "--prompts", "3"], "prompts"),
        (["7", "--random-directions", "1"], "random_directions"),
        (["7", "--base-model", "base"], "--base-model is for a bundle"),
        (["7", "--config", "x.json"], "a TARGET has no meaning beside it"),
        (["--config", "x.json", "--answers", "0"], "--answers has no meaning beside it"),
        (["--id", "evl_1", "--config", "x.json"], "--config has no meaning beside it"),
        (["--id", "evl_1", "--max-new-tokens", "5"], "--max-new-tokens has no meaning"),
        (["7", "--out", "nowhere/result.json"], "is not a folder"),
        (["7", "--out", "/"], "exists"),
        (["7", "--figures", "http://x/y"], "not an address"),
    ],
)
def test_what_cannot_be_asked_is_a_usage_error(
    run: Run, audited: ScriptedServer, flags: list[str], told: str
) -> None:
    done = run("evaluate", AUDIT, *flags)
    assert (done.status, done.out) == (4, "")
    assert told in done.err
    assert audited.to("POST", ASKED) == []


def test_a_failed_evaluation_ends_as_a_failed_audit_does(run: Run, audited: ScriptedServer) -> None:
    error = {
        "code": "invalid_steering",
        "detail": "no behaviour 3",
        "errors": [{"field": "targets[0].target"}],
    }
    audited.on("GET", MADE, Answer(200, evaluation("failed", error=error)))
    done = run("evaluate", AUDIT, "behaviour:3")
    assert (done.status, done.out) == (2, "")
    assert "invalid_steering" in done.err
    told = run("evaluate", AUDIT, "behaviour:3", "--json").json()["error"]
    assert (told["code"], told["errors"]) == ("invalid_steering", error["errors"])


def test_a_wait_that_runs_out_is_taken_up_by_its_id(run: Run, audited: ScriptedServer) -> None:
    audited.on("GET", MADE, Answer(200, evaluation("running")))
    done = run("evaluate", AUDIT, "behaviour:3", "--timeout", "0.05")
    assert done.status == 1
    assert f"evaluation {an_id('evl')} has not ended in time; it goes on" in done.err
    audited.on("GET", MADE, Answer(200, evaluation("succeeded")))
    assert run("evaluate", AUDIT, "--id", an_id("evl"), "--json").json() == evaluation_result()
    assert len(audited.to("POST", ASKED)) == 1
    assert run("evaluate", AUDIT, "--id", an_id("evl", 2)).status == 1


def test_an_interrupt_says_how_to_come_back(
    run: Run, audited: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("atomscope.client._service.Service.sleep", interrupted)
    done = run("evaluate", AUDIT, "behaviour:3")
    assert (done.status, done.out) == (130, "")
    assert f"`atomscope evaluate {AUDIT} --id {an_id('evl')}` comes back to it" in done.err


def test_refusals_of_the_service_are_told(run: Run, audited: ScriptedServer) -> None:
    audited.on("POST", ASKED, Answer(409, problem(409, "audit_not_succeeded")))
    done = run("evaluate", AUDIT, "behaviour:3")
    assert (done.status, done.out) == (1, "")
    assert "audit_not_succeeded" in done.err


def test_the_result_is_written_too_and_nothing_is_overwritten(
    run: Run, audited: ScriptedServer, tmp_path: Path, bundle: Path
) -> None:
    out = tmp_path / "result.json"
    assert run("evaluate", AUDIT, "7", "--out", out).status == 0
    assert json.loads(out.read_text()) == evaluation_result()
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    again = run("evaluate", AUDIT, "7", "--out", out)
    assert again.status == 4
    assert "exists" in again.err
    within = run("evaluate", AUDIT, "7", "--out", bundle / "result.json")
    assert "is within the bundle" in within.err
    within = run("evaluate", AUDIT, "7", "--figures", bundle)
    assert "is within the bundle" in within.err


def test_a_result_that_cannot_be_written_is_printed_all_the_same(
    run: Run, audited: ScriptedServer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = run("evaluate", AUDIT, "7", "--json", "--figures", tmp_path / "file" / "figures")
    assert (done.status, done.json()) == (1, evaluation_result())
    assert "could not be written" in done.err


def test_figures_are_drawn_with_the_budget_that_was_asked(
    run: Run, audited: ScriptedServer, tmp_path: Path
) -> None:
    done = run("evaluate", AUDIT, "--id", an_id("evl"), "--figures", tmp_path / "figures")
    assert done.status == 0
    figures = sorted((tmp_path / "figures").iterdir())
    assert [path.name for path in figures] == ["behaviour-3-answers.png", "behaviour-3.png"]
    assert all(str(path) in done.err for path in figures)


def test_the_page_has_the_figures_and_is_named(run: Run, audited: ScriptedServer, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = run("evaluate", AUDIT, "--id", an_id("evl"), "--report", page)
    assert done.status == 0
    assert str(page) in done.err
    assert "data:image/png;base64," in page.read_text()
    assert run("evaluate", AUDIT, "7", "--report", page).status == 4  # it exists


# -------------------------------------------------------------------- a bundle


class Runner:
    """Stands for the pipeline, which has tests of its own."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[tuple[Bundle, Path, EvaluationQuery]] = []

    def evaluate(
        self, bundle: Bundle, base_model: Path, query: EvaluationQuery, on_progress: Any
    ) -> EvaluationResult:
        self.asked.append((bundle, base_model, query))
        on_progress(Progress(done=3, total=7, unit="steps"))
        if self.error is not None:
            raise self.error
        return msgspec.convert(evaluation_result(), EvaluationResult)


def test_a_bundle_is_asked_in_process(run: Run, local: Any, bundle: Path) -> None:
    runner = local(Runner())
    done = run("evaluate", bundle, "behaviour:3", "--detector", "json", "--base-model", "base", "--json")
    assert (done.status, done.json(), done.err) == (0, evaluation_result(), "")
    ((asked, base, query),) = runner.asked
    assert (asked.manifest.audit_id, base) == (f"aud_{7:032x}", Path("base"))
    assert [item.target for item in query.targets] == ["behaviour:3"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["7"], "--base-model DIR"),
        (["7", "--base-model", "base", "--timeout", "3"], "--timeout has no meaning"),
        (["7", "--base-model", "base", "--base-url", "http://x"], "no service is asked"),
        (["--id", "evl_1", "--base-model", "base"], "a bundle keeps no evaluations"),
    ],
)
def test_what_has_no_meaning_for_a_bundle_is_refused(
    run: Run, local: Any, bundle: Path, flags: list[str], told: str
) -> None:
    runner = local(Runner())
    done = run("evaluate", bundle, *flags)
    assert (done.status, done.out) == (4, "")
    assert told in done.err
    assert runner.asked == []


def test_bad_input_of_a_bundle_exits_as_the_services_would(run: Run, local: Any, bundle: Path) -> None:
    local(Runner(InvalidInput("invalid_steering", "there is no behaviour 99")))
    done = run("evaluate", bundle, "behaviour:99", "--base-model", "base")
    assert (done.status, done.out) == (2, "")
    assert "there is no behaviour 99" in done.err


def test_without_the_workers_extra_the_pip_line_is_printed(run: Run, local: Any, bundle: Path) -> None:
    done = run("evaluate", bundle, "7", "--base-model", "base")
    assert (done.status, done.out) == (4, "")
    assert done.err.splitlines()[-1] == "pip install 'atomscope[workers]'"
