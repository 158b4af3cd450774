"""`audit.steer({...: "auto"})`: one evaluation without a detector, then the adapter with what it found."""

from __future__ import annotations

from typing import Any

import pytest

from atomscope import SteeringError, UsageError
from tests.sdk.client.samples import AUDIT, audit, evaluated_target, evaluation, evaluation_result, steered
from tests.sdk.client.scenario import Ask
from tests.sdk.client.server import Answer, ScriptedServer

ASKED = f"/v1/audits/{AUDIT}/evaluations"

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def audited(server: ScriptedServer) -> ScriptedServer:
    server.on("GET", f"/v1/audits/{AUDIT}", Answer(200, audit("succeeded")))
    return server.on("POST", "/v1/steered-adapters", Answer(201, steered()))


def found(server: ScriptedServer, *ends: tuple[float | None, float | None]) -> None:
    targets = [evaluated_target(points=[], auto_up=up, auto_down=down) for up, down in ends]
    result = evaluation_result(targets=targets)
    server.on("POST", ASKED, Answer(202, evaluation("succeeded", result=result)))


def steer(ask: Ask, strengths: Any, **how: Any) -> Any:
    return ask(ask.steps(lambda c: c.audits.get(AUDIT), lambda a: a.steer(strengths, **how)))


def test_the_largest_strengths_are_found_and_taken_beside_numbers(audited: ScriptedServer, ask: Ask) -> None:
    found(audited, (0.3, -0.1), (0.2, -0.4))
    strengths = {7: "auto", "behaviour:3": "-auto", 5: 0.05}
    steer(ask, strengths, kl_budget=0.2, perplexity_budget=1.5, unit="alpha", power="0", format="delta")
    (asked,) = audited.to("POST", ASKED)
    query = asked.json()
    assert [item["target"] for item in query["targets"]] == ["7", "behaviour:3"]
    assert all(item.get("detector") is None for item in query["targets"])
    assert (query["kl_budget"], query["perplexity_budget"]) == (0.2, 1.5)
    assert (query["unit"], query["power"]) == ("alpha", "0")
    (sent,) = audited.to("POST", "/v1/steered-adapters")
    assert sent.json()["strengths"] == {"7": 0.3, "behaviour:3": -0.4, "5": 0.05}
    assert (sent.json()["unit"], sent.json()["power"], sent.json()["format"]) == ("alpha", "0", "delta")


def test_a_client_that_knows_the_audit_by_its_id_has_it_too(audited: ScriptedServer, ask: Ask) -> None:
    found(audited, (0.3, -0.1))
    ask(ask.steps(lambda c: c.steered_adapters.create(audit=AUDIT, strengths={7: "-auto"})))
    assert audited.to("POST", "/v1/steered-adapters")[0].json()["strengths"] == {"7": -0.1}


def test_numbers_alone_ask_for_no_evaluation(audited: ScriptedServer, ask: Ask) -> None:
    steer(ask, {7: 0.1})
    assert audited.to("POST", ASKED) == []


def test_a_budget_that_allows_nothing_steers_nothing(audited: ScriptedServer, ask: Ask) -> None:
    found(audited, (0.3, None))
    with pytest.raises(SteeringError, match=r"7=-auto: no strength costs as little as 0.5 nats per token"):
        steer(ask, {7: "-auto"})
    with pytest.raises(SteeringError, match=r"nats per token and 1\.2 times the perplexity"):
        steer(ask, {7: "-auto"}, perplexity_budget=1.2)
    assert audited.to("POST", "/v1/steered-adapters") == []


@pytest.mark.parametrize(
    ("strengths", "how", "error", "told"),
    [
        ({7: "most"}, {}, SteeringError, "the strength of atom 7 is 'most': a number, 'auto' or '-auto'"),
        ({7: True}, {}, SteeringError, "not a number"),
        ({7: "auto", "7": "auto"}, {}, SteeringError, "atom 7 was named twice"),
        ({7: "auto", "7": 0.1}, {}, SteeringError, "atom 7 was named twice"),
        ({"x": "auto"}, {}, SteeringError, "x"),
        ({7: 0.1}, {"kl_budget": 0.1}, UsageError, "kl_budget is for a strength of 'auto'"),
        ({7: 0.1}, {"timeout": 3.0}, UsageError, "timeout is for a strength of 'auto'"),
        ({7: "auto"}, {"kl_budget": -1}, UsageError, "kl_budget"),
        ({7: 0.1}, {"perplexity_budget": 2.0}, UsageError, "perplexity_budget is for a strength of 'auto'"),
        ({7: "auto"}, {"perplexity_budget": 1.0}, UsageError, "perplexity_budget"),
    ],
)
def test_what_cannot_be_asked_is_never_sent(
    audited: ScriptedServer, ask: Ask, strengths: Any, how: Any, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        steer(ask, strengths, **how)
    assert audited.to("POST", ASKED) == []
    assert audited.to("POST", "/v1/steered-adapters") == []
