"""Asking for an attribution: what is sent, how it is waited for, and how it ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

import atomscope
from atomscope import UsageError
from tests.sdk.client.samples import AUDIT, an_id, attribution, attribution_result, audit
from tests.sdk.client.scenario import Ask
from tests.sdk.client.server import Answer, ScriptedServer, problem

ASKED = f"/v1/audits/{AUDIT}/attributions"
MADE = f"{ASKED}/{an_id('atr')}"
MESSAGES = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def audited(server: ScriptedServer) -> ScriptedServer:
    server.on("GET", f"/v1/audits/{AUDIT}", Answer(200, audit("succeeded")))
    return server.on("POST", ASKED, Answer(202, attribution()))


def _attribute(ask: Ask, *arguments: Any, **options: Any) -> Any:
    return ask(ask.steps(lambda c: c.audits.get(AUDIT), lambda a: a.attribute(*arguments, **options)))


def test_a_query_is_asked_once_and_waited_for(audited: ScriptedServer, ask: Ask) -> None:
    states = ["queued", "running", "running", "succeeded"]
    audited.on("GET", MADE, *(Answer(200, attribution(state)) for state in states))
    found = _attribute(ask, "p", "c", exact=True, documents=3)
    assert (found.explained, found.base_loss) == (0.25, 10.0)
    assert (found.atoms[0].atom, found.behaviours[0].behaviour, found.documents[0].document) == (7, 1, 4)
    (posted,) = audited.to("POST", ASKED)
    sent = {name: value for name, value in posted.json().items() if value is not None}
    assert sent == {"prompt": "p", "completion": "c", "exact": True, "documents": 3}
    assert posted.headers["Idempotency-Key"]
    assert len(audited.to("GET", MADE)) == 4


def test_messages_are_sent_as_they_are(audited: ScriptedServer, ask: Ask) -> None:
    audited.on("GET", MADE, Answer(200, attribution("succeeded")))
    _attribute(ask, messages=MESSAGES)
    assert audited.to("POST", ASKED)[0].json()["messages"] == MESSAGES


def test_an_answer_that_is_there_at_once_is_not_asked_for(server: ScriptedServer, ask: Ask) -> None:
    server.on("GET", f"/v1/audits/{AUDIT}", Answer(200, audit("succeeded")))
    server.on("POST", ASKED, Answer(202, attribution("succeeded")))
    assert _attribute(ask, "p", "c").documents[0].document == 4
    assert server.to("GET", MADE) == []


def test_a_failed_attribution_raises_with_its_faults(audited: ScriptedServer, ask: Ask) -> None:
    fault = {"file": "query", "line": 1, "field": "messages[1].role", "message": "no role"}
    error = {"code": "bad_row", "detail": "the query cannot be used", "errors": [fault]}
    audited.on("GET", MADE, Answer(200, attribution("failed", error=error)))
    with pytest.raises(atomscope.AttributionFailed, match=r"failed \(bad_row\)") as caught:
        _attribute(ask, "p", "c")
    assert (caught.value.code, caught.value.errors) == ("bad_row", [fault])
    assert caught.value.job_id == an_id("atr")


def test_a_wait_that_runs_out_leaves_the_attribution_alone(audited: ScriptedServer, ask: Ask) -> None:
    audited.on("GET", MADE, Answer(200, attribution("running")))
    with pytest.raises(atomscope.WaitTimeout, match="it goes on"):
        _attribute(ask, "p", "c", timeout=0.1)
    assert {got.method for got in audited.got} == {"GET", "POST"}


@pytest.mark.parametrize("state", ["succeeded", "failed"])
def test_an_end_without_what_it_should_bring_is_an_api_error(
    audited: ScriptedServer, ask: Ask, state: str
) -> None:
    audited.on("GET", MADE, Answer(200, attribution(state, result=None)))
    with pytest.raises(atomscope.APIError, match="no result"):
        _attribute(ask, "p", "c")


def test_a_result_of_another_shape_is_an_api_error(audited: ScriptedServer, ask: Ask) -> None:
    odd = attribution("succeeded", result=attribution_result(explained="much"))
    audited.on("GET", MADE, Answer(200, odd))
    with pytest.raises(atomscope.APIError, match="could not be read"):
        _attribute(ask, "p", "c")


def test_refusals_of_the_service_are_raised(server: ScriptedServer, ask: Ask) -> None:
    server.on("GET", f"/v1/audits/{AUDIT}", Answer(200, audit("running")))
    server.on("POST", ASKED, Answer(409, problem(409, "audit_not_succeeded")))
    with pytest.raises(atomscope.ConflictError):
        _attribute(ask, "p", "c")
    server.on("POST", ASKED, Answer(429, problem(429, "too_many_attributions"), {"Retry-After": "0"}))
    with pytest.raises(atomscope.RateLimitError):
        _attribute(ask, "p", "c")
    assert len(server.to("POST", ASKED)) == 4, "what was too many is tried again"


class _Odd:
    """What no JSON holds."""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt": "p"},
        {"prompt": "p", "completion": ""},
        {"prompt": "p", "completion": "c", "messages": MESSAGES},
        {"messages": []},
        {"messages": [{"role": "user", "content": _Odd()}]},
        {"messages": json.loads("[" + '{"x":' * 99 + "1" + "}" * 99 + "]")},
        {"prompt": "half \ud800", "completion": "c"},
        {"prompt": "p", "completion": "c" * 1_000_001},
        {"prompt": "p", "completion": "c", "documents": 1001},
        {"prompt": "p", "completion": "c", "documents": -1},
        {"prompt": 5, "completion": "c"},
    ],
)
def test_what_is_no_query_is_never_sent(audited: ScriptedServer, ask: Ask, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="not a query"):
        _attribute(ask, **options)
    assert audited.to("POST", ASKED) == []
