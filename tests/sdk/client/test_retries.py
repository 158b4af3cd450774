"""What is sent again, how often, after how long, and with which key."""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

import atomscope
from atomscope import Client
from atomscope.client._retry import RetryPolicy, is_retryable, retry_after
from tests.sdk.client.samples import MODEL, audit, model
from tests.sdk.client.scenario import Ask
from tests.sdk.client.server import Answer, ScriptedServer, problem

PATH = "/v1/models/.*"


def _get(client: Any) -> Any:
    return client.models.get(MODEL)


def test_two_server_errors_are_survived(server: ScriptedServer, ask: Ask) -> None:
    server.on("GET", PATH, Answer(500, problem(500, "internal")), Answer(503, b"busy"), Answer(200, model()))
    assert ask(_get).id == MODEL
    assert len(server.got) == 3


def test_the_third_server_error_is_raised_with_its_request_id(server: ScriptedServer, ask: Ask) -> None:
    server.on("GET", PATH, Answer(500, problem(500, "internal", "the disk is full")))
    with pytest.raises(atomscope.InternalServerError, match=r"disk is full.*req_header") as caught:
        ask(_get)
    assert len(server.got) == 3
    assert (caught.value.request_id, caught.value.status, caught.value.code) == (
        "req_header",
        500,
        "internal",
    )


def test_retry_after_is_waited_for(server: ScriptedServer, ask: Ask) -> None:
    server.on("GET", PATH, Answer(429, problem(429, "slow"), {"Retry-After": "1"}), Answer(200, model()))
    start = time.monotonic()
    ask(_get)
    assert time.monotonic() - start >= 1.0


def test_a_long_retry_after_is_left_to_the_caller(server: ScriptedServer, ask: Ask) -> None:
    server.on("GET", PATH, Answer(429, problem(429, "slow"), {"Retry-After": "3600"}))
    with pytest.raises(atomscope.RateLimitError):
        ask(_get)
    assert len(server.got) == 1


def test_a_dropped_connection_is_tried_again(server: ScriptedServer, ask: Ask) -> None:
    server.on("GET", PATH, Answer(drop=True), Answer(200, model(), cut=10), Answer(200, model()))
    assert ask(_get).id == MODEL


def test_a_slow_answer_times_out_with_the_id_that_was_sent(server: ScriptedServer, ask: Ask) -> None:
    server.on("GET", PATH, Answer(200, model(), delay=1.0))
    with pytest.raises(atomscope.APITimeoutError) as caught:
        ask(_get, timeout=0.1, max_retries=0, quick=False)
    assert caught.value.request_id == server.got[0].headers["X-Request-Id"]
    assert isinstance(caught.value, atomscope.APIConnectionError)


def test_nobody_listening_is_a_connection_error_with_a_request_id() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    client = Client(base_url=url, api_key="ask_x", max_retries=0)
    with client, pytest.raises(atomscope.APIConnectionError, match=r":\d+ cannot be reached") as caught:
        client.models.get(MODEL)
    assert caught.value.request_id is not None
    assert caught.value.request_id in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422])
def test_what_cannot_come_out_otherwise_is_sent_once(server: ScriptedServer, status: int) -> None:
    server.on("GET", PATH, Answer(status, problem(status, "as_it_is")))
    with Client(base_url=server.url, api_key="ask_x") as client, pytest.raises(atomscope.APIStatusError):
        client.models.get(MODEL)
    assert len(server.got) == 1


def test_one_post_keeps_its_idempotency_key_and_another_has_its_own(server: ScriptedServer, ask: Ask) -> None:
    running = Answer(409, problem(409, "idempotency_in_progress"), {"Retry-After": "0"})
    key = {"id": "key_1", "name": "ci", "hint": "ask_", "created_at": "now", "last_used_at": None,
           "revoked_at": None, "key": "ask_1"}  # fmt: skip
    server.on("POST", "/v1/keys", Answer(drop=True), running, Answer(201, key))
    assert ask(ask.steps(lambda c: c.keys.create("ci"))).key == "ask_1"
    ask(lambda c: c.keys.create("ci"))
    keys = [got.headers["Idempotency-Key"] for got in server.to("POST", "/v1/keys")]
    assert len(keys) == 4
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert all(keys)


def test_a_delete_whose_answer_was_lost_has_succeeded(server: ScriptedServer, ask: Ask) -> None:
    server.on("DELETE", PATH, Answer(drop=True), Answer(404, problem(404, "not_found")))
    assert ask(lambda c: c.models.delete(MODEL)).deleted is True


def test_a_delete_of_what_never_was_is_an_error(server: ScriptedServer, ask: Ask) -> None:
    server.on("DELETE", PATH, Answer(404, problem(404, "not_found")))
    with pytest.raises(atomscope.NotFoundError):
        ask(lambda c: c.models.delete(MODEL))


def test_cancel_of_an_ended_audit_is_not_sent_again(server: ScriptedServer, ask: Ask) -> None:
    server.on("GET", "/v1/audits/.*", Answer(200, audit("succeeded")))
    server.on("POST", "/v1/audits/.*/cancel", Answer(409, problem(409, "audit_ended")))
    with pytest.raises(atomscope.ConflictError):
        ask(ask.steps(lambda c: c.audits.get(audit()["id"]), lambda a: a.cancel()))
    assert len(server.to("POST", ".*")) == 1


def test_pauses_double_from_half_a_second_to_eight_with_jitter() -> None:
    policy = RetryPolicy()
    for attempt, full in enumerate([0.5, 1.0, 2.0, 4.0, 8.0, 8.0]):
        pauses = [policy.pause(attempt) for _ in range(50)]
        assert all(0.75 * full <= pause <= full for pause in pauses)
        assert len(set(pauses)) > 1


def test_retry_after_is_read_in_both_its_forms() -> None:
    assert retry_after("7") == 7.0
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert retry_after(later) == pytest.approx(20, abs=2)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=20), usegmt=True)
    assert retry_after(past) == 0.0
    assert [retry_after(text) for text in ("", "soon", "-3", "1.5", "²")] == [None] * 5


def test_only_a_409_that_says_so_is_retryable() -> None:
    assert is_retryable(409, "idempotency_in_progress")
    assert not is_retryable(409, "audit_ended")
    assert is_retryable(408, "unknown")
