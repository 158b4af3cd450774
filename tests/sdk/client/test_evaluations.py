"""Asking for an evaluation: what is sent, how it is waited for, how it ends, and what is never sent."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

import atomscope
from atomscope import EvaluationTarget, NamedDetector, Prompt, Sampling, UsageError
from atomscope.bundle.atom_list import AtomAttributes
from atomscope.client._evaluations import make_evaluation
from atomscope.types.atoms import Atom
from atomscope.types.evaluation import EvaluationQuery
from atomscope.types.resources import Evaluation
from tests.sdk.client.samples import (
    AUDIT,
    an_id,
    atom,
    audit,
    behaviour,
    evaluation,
    evaluation_result,
)
from tests.sdk.client.scenario import Ask
from tests.sdk.client.server import Answer, ScriptedServer, page, problem

ASKED = f"/v1/audits/{AUDIT}/evaluations"
MADE = f"{ASKED}/{an_id('evl')}"
RUNNING = evaluation("running", progress={"done": 3, "total": 90, "unit": "steps"})

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def audited(server: ScriptedServer) -> ScriptedServer:
    server.on("GET", f"/v1/audits/{AUDIT}", Answer(200, audit("succeeded")))
    return server.on("POST", ASKED, Answer(202, evaluation()))


def _evaluate(ask: Ask, *arguments: Any, **options: Any) -> Any:
    return ask(ask.steps(lambda c: c.audits.get(AUDIT), lambda a: a.evaluate(*arguments, **options)))


def sent(server: ScriptedServer) -> dict[str, Any]:
    (posted,) = server.to("POST", ASKED)
    assert posted.headers["Idempotency-Key"]
    return posted.json()


def test_one_line_asks_and_waits_for_the_result(audited: ScriptedServer, ask: Ask) -> None:
    audited.on(
        "GET",
        MADE,
        *(Answer(200, each) for each in (evaluation(), RUNNING, RUNNING, evaluation("succeeded"))),
    )
    found = _evaluate(ask, "behaviour:3", detector="yes_no")
    (target,) = found.targets
    assert (target.verdict, target.up.strength, target.points[1].q_value) == ("steers", 0.2, 0.004)
    query = msgspec.convert(sent(audited), EvaluationQuery)
    assert query == EvaluationQuery(
        targets=[EvaluationTarget(target="behaviour:3", detector=NamedDetector(name="yes_no"))]
    )
    assert len(audited.to("GET", MADE)) == 4


def test_every_setting_is_sent(audited: ScriptedServer, ask: Ask) -> None:
    audited.on("GET", MADE, Answer(200, evaluation("succeeded")))
    _evaluate(
        ask,
        [
            7,
            {"target": "behaviour:2", "detector": "regex:^-", "inviting": ["a", {"prompt": "b"}]},
            EvaluationTarget(target="9", inviting=[Prompt(prompt="c"), Prompt(prompt="d")], name="nine"),
        ],
        np.linspace(-0.5, 0.5, 2, dtype=np.float32),
        detector={"type": "length", "at_most": 5},
        kl_budget=0.2,
        neutral=["e", Prompt(prompt="f")],
        sampling=Sampling(temperature=0.7),
        random_at="chosen",
        power="+1/2",
        seed=3,
    )
    told = sent(audited)
    assert [item["target"] for item in told["targets"]] == ["7", "behaviour:2", "9"]
    assert [item["detector"]["type"] for item in told["targets"]] == ["length", "pattern", "length"]
    assert [item["prompt"] for item in told["targets"][1]["inviting"]] == ["a", "b"]
    assert (told["targets"][2]["name"], told["targets"][2]["inviting"][1]["prompt"]) == ("nine", "d")
    assert told["strengths"] == [-0.5, 0.5]
    assert [item["prompt"] for item in told["neutral"]] == ["e", "f"]
    assert (told["sampling"]["temperature"], told["random_at"], told["power"]) == (0.7, "chosen", "+1/2")
    assert (told["kl_budget"], told["seed"], told["unit"]) == (0.2, 3, "norm")


def test_atoms_and_behaviours_are_targets_themselves(audited: ScriptedServer, ask: Ask) -> None:
    audited.on("GET", f"/v1/audits/{AUDIT}/atoms", Answer(200, page([atom(7, 1), atom(8, 2)])))
    audited.on("GET", f"/v1/audits/{AUDIT}/behaviours", Answer(200, page([behaviour(3, 1)])))
    audited.on("GET", MADE, Answer(200, evaluation("succeeded")))

    def blocking(client: Any) -> Any:
        found = client.audits.get(AUDIT)
        return found.evaluate([found.behaviours[0], *found.atoms])

    async def awaiting(client: Any) -> Any:
        found = await client.audits.get(AUDIT)
        return await found.evaluate([(await found.behaviours())[0], *(await found.atoms())])

    ask(blocking if ask.blocking else awaiting)
    assert [item["target"] for item in sent(audited)["targets"]] == ["behaviour:3", "7", "8"]


def test_a_failed_evaluation_raises_with_its_faults(audited: ScriptedServer, ask: Ask) -> None:
    error = {"code": "unknown_target", "detail": "there is no behaviour 3", "errors": [{"message": "m"}]}
    audited.on("GET", MADE, Answer(200, evaluation("failed", error=error)))
    with pytest.raises(
        atomscope.EvaluationFailed, match=r"evaluation evl_\S+ failed \(unknown_target\)"
    ) as caught:
        _evaluate(ask, "behaviour:3")
    assert (caught.value.code, caught.value.errors) == ("unknown_target", [{"message": "m"}])
    assert caught.value.job_id == an_id("evl")


def test_a_wait_that_runs_out_can_be_taken_up_by_its_id(audited: ScriptedServer, ask: Ask) -> None:
    audited.on("GET", MADE, Answer(200, RUNNING))
    with pytest.raises(atomscope.WaitTimeout, match=f"evaluation {an_id('evl')} has not ended in time"):
        _evaluate(ask, "behaviour:3", timeout=0.1)
    audited.on("GET", MADE, Answer(200, RUNNING), Answer(200, evaluation("succeeded")))
    taken_up = ask.steps(lambda c: c.audits.get(AUDIT), lambda a: a.evaluation(an_id("evl")))
    assert msgspec.to_builtins(ask(taken_up)) == evaluation_result()
    assert len(audited.to("POST", ASKED)) == 1


def test_a_wait_outlasts_a_service_that_is_away_for_a_while(audited: ScriptedServer, ask: Ask) -> None:
    away = [Answer(503, problem(503, "store_unavailable"))] * 4 + [Answer(drop=True)] * 4
    audited.on("GET", MADE, Answer(200, RUNNING), *away, Answer(200, evaluation("succeeded")))
    assert _evaluate(ask, "behaviour:3").seconds == 90.0


def test_a_service_that_stays_away_ends_the_wait(audited: ScriptedServer, ask: Ask) -> None:
    audited.on("GET", MADE, Answer(503, problem(503, "store_unavailable")))
    with pytest.raises(atomscope.InternalServerError):
        _evaluate(ask, "behaviour:3")
    assert len(audited.to("GET", MADE)) == 33, "eleven looks of three attempts"


def test_how_far_it_is_can_be_followed(audited: ScriptedServer, ask: Ask) -> None:
    audited.on("GET", MADE, Answer(200, RUNNING), Answer(200, evaluation("succeeded")))
    seen: list[Evaluation] = []

    async def look(now: Evaluation) -> None:
        seen.append(now)

    query = make_evaluation("behaviour:3")
    on_look = seen.append if ask.blocking else look
    ask(ask.steps(lambda c: c.audits.get(AUDIT), lambda a: a.ask(query, on_look=on_look)))
    assert [now.status for now in seen] == ["queued", "running", "succeeded"]
    assert seen[1].progress is not None
    assert (seen[1].progress.done, seen[1].progress.total) == (3, 90)


def test_refusals_of_the_service_are_raised(server: ScriptedServer, ask: Ask) -> None:
    server.on("GET", f"/v1/audits/{AUDIT}", Answer(200, audit("running")))
    server.on("POST", ASKED, Answer(409, problem(409, "audit_not_succeeded")))
    with pytest.raises(atomscope.ConflictError):
        _evaluate(ask, "behaviour:3")
    server.on("POST", ASKED, Answer(429, problem(429, "too_many_evaluations"), {"Retry-After": "0"}))
    with pytest.raises(atomscope.RateLimitError):
        _evaluate(ask, "behaviour:3")
    missing = ask.steps(lambda c: c.audits.get(AUDIT), lambda a: a.evaluation(an_id("evl", 9)))
    with pytest.raises(atomscope.NotFoundError):
        ask(missing)


STRENGTHS = [float(place + 1) for place in range(32)]


class _Odd:
    """What no JSON holds."""


@pytest.mark.parametrize(
    ("targets", "options", "told"),
    [
        ("behavior:3", {}, "names no atom"),
        ([], {}, "targets"),
        (None, {}, "not an evaluation"),
        (_Odd(), {}, "not an evaluation"),
        ([_Odd()], {}, "neither an atom"),
        (["7", "atom:7"], {}, "given twice"),
        ([str(index) for index in range(21)], {}, "targets"),
        ({"detector": "yes_no"}, {}, "target"),
        ({"target": "7", "surprise": 1}, {}, "surprise"),
        ({"target": "7", "inviting": "why?"}, {}, "inviting"),
        ({"target": "7", "inviting": ["why?"]}, {}, "inviting"),
        ({"target": "7", "inviting": ["half \ud800", "b"]}, {}, "surrogates"),
        (EvaluationTarget(target="7", name=""), {}, "name"),
        ("7", {"detector": "maybe"}, "yes_no"),
        ("7", {"detector": "regex:("}, "no regular expression"),
        ("7", {"detector": "judge:"}, "question"),
        ("7", {"detector": {"type": "named", "name": "x"}}, "'bulleted_list'"),
        ("7", {"detector": 5}, "detector"),
        ("7", {"strengths": [math.nan]}, "finite"),
        ("7", {"strengths": [math.inf]}, "finite"),
        ("7", {"strengths": [0.0, 0.1]}, "other than 0"),
        ("7", {"strengths": [0.1, 0.1]}, "given twice"),
        ("7", {"strengths": [True]}, "strengths"),
        ("7", {"strengths": ["0.1"]}, "strengths"),
        ("7", {"strengths": "often"}, "'auto'"),
        ("7", {"strengths": 0.1}, "not an evaluation"),
        ("7", {"strengths": []}, "strengths"),
        ("7", {"kl_budget": math.nan}, "kl_budget"),
        ("7", {"sampling": {"temperature": math.nan}}, "temperature"),
        ("7", {"random_directions": 5}, "random_directions"),
        (["7", "8"], {"random_directions": 1000, "strengths": STRENGTHS}, "2 targets at 32 strengths"),
        ("7", {"surprise": 1}, "surprise"),
        ("7", {"neutral": [_Odd(), _Odd()]}, "not an evaluation"),
        ("7", {"detector": "log-probability", "neutral": ["a", "b"]}, "`completion`"),
    ],
)  # fmt: skip
def test_what_the_service_would_refuse_is_never_sent(
    targets: Any, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=r"not an? (evaluation|detector)") as caught:
        make_evaluation(targets, **options)
    assert told in str(caught.value)


def test_as_much_may_be_asked_as_a_result_holds() -> None:
    query = make_evaluation("7", STRENGTHS, random_directions=1000)
    assert (len(query.strengths), query.random_directions) == (32, 1000)


def test_a_usage_error_comes_before_anything_is_sent(audited: ScriptedServer, ask: Ask) -> None:
    with pytest.raises(UsageError, match="names no atom"):
        _evaluate(ask, "behavior:3")
    assert audited.to("POST", ASKED) == []


def test_what_another_audit_found_is_refused() -> None:
    strange = AtomAttributes(msgspec.convert(atom(7, 1), Atom), an_id("aud", 9))
    with pytest.raises(UsageError, match="is of the audit"):
        make_evaluation([strange], audit_id=AUDIT)
    assert make_evaluation(strange, audit_id=an_id("aud", 9)).targets[0].target == "7"
