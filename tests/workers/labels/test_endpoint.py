"""What goes over the wire, and that nothing an endpoint answers does more than fail one label."""

from __future__ import annotations

import gzip
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from atomscope.client._retry import RetryPolicy
from atomscope_workers.labels.endpoint import MAX_ANSWER_BYTES, Answer, LabelEndpoint, LabelFailed
from atomscope_workers.labels.settings import LabelSettings
from tests.workers.labels.server import ModelServer, Received, Reply, model_server, said

MESSAGES = [{"role": "user", "content": "name it"}]
QUICK = RetryPolicy(first=0.01, longest=0.01)
KEY = "sk-test-key"


def _settings(url: str, **changes: Any) -> LabelSettings:
    return LabelSettings(**{"url": url, "model": "small", "key": KEY, "timeout": 5.0} | changes)


def _nothing() -> None:
    """Go on."""


def _ask(
    server: ModelServer, checkpoint: Callable[[], None] = _nothing, **changes: Any
) -> Answer | LabelFailed:
    with LabelEndpoint(_settings(server.url, **changes), checkpoint, QUICK) as endpoint:
        try:
            return endpoint.ask(MESSAGES)
        except LabelFailed as error:
            return error


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_a_request_is_one_post_with_model_key_and_options() -> None:
    with model_server(lambda number, received: said("tea")) as server:
        answer = _ask(server, options={"temperature": 0, "max_tokens": 9})
    assert answer == Answer("tea", "small-2026", 1)
    (received,) = server.received
    assert (received.method, received.path) == ("POST", "/v1/chat/completions")
    assert received.headers["authorization"] == f"Bearer {KEY}"
    assert received.headers["content-type"] == "application/json"
    assert received.body == {"model": "small", "messages": MESSAGES, "temperature": 0, "max_tokens": 9}


def test_without_a_key_none_is_sent() -> None:
    with model_server(lambda number, received: said("tea")) as server:
        _ask(server, key=None)
    assert "authorization" not in server.received[0].headers


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_passing_fault_is_tried_again(status: int) -> None:
    with model_server(lambda number, received: said("tea") if number else Reply(status)) as server:
        assert _ask(server) == Answer("tea", "small-2026", 2)
    assert server.received[0].body == server.received[1].body


def test_a_lasting_fault_is_told_after_three_attempts() -> None:
    with model_server(lambda number, received: Reply(500)) as server:
        failed = _ask(server)
    assert isinstance(failed, LabelFailed)
    assert (failed.reason, failed.attempts, len(server.received)) == ("HTTP 500", 3, 3)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_is_not_tried_again(status: int) -> None:
    with model_server(lambda number, received: Reply(status, b"no: " + KEY.encode())) as server:
        failed = _ask(server)
    assert isinstance(failed, LabelFailed)
    assert (failed.reason, len(server.received)) == (f"HTTP {status}", 1)


def test_retry_after_goes_before_our_own_pause() -> None:
    answers = [Reply(429, headers={"Retry-After": "1"}), said("tea")]
    with model_server(lambda number, received: answers[number]) as server:
        start = time.monotonic()
        assert isinstance(_ask(server), Answer)
    assert time.monotonic() - start >= 1


def test_a_retry_after_of_an_hour_is_not_waited_for() -> None:
    with model_server(lambda number, received: Reply(503, headers={"Retry-After": "3600"})) as server:
        failed = _ask(server)
    assert isinstance(failed, LabelFailed)
    assert failed.attempts == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_nothing_is_sent_to_its_target(status: int) -> None:
    with model_server(lambda number, received: said("stolen")) as target:

        def away(number: int, received: Received) -> Reply:
            return Reply(status, headers={"Location": f"{target.url}/chat/completions"})

        with model_server(away) as server:
            failed = _ask(server)
    assert isinstance(failed, LabelFailed)
    assert failed.reason == f"HTTP {status}, a redirect, which is not followed"
    assert (len(server.received), len(target.received)) == (1, 0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"choices": {}}',
        b'{"choices": [{"message": {"content": ["tea"]}}]}',
        b'{"choices": [{"message": {"content": "\xff"}}]}',
        b"[" * 100_000,
    ],
    ids=["empty", "html", "list", "no choices", "no list", "parts", "no utf-8", "deep"],
)
def test_what_is_no_chat_completion_is_told_as_such(body: bytes) -> None:
    with model_server(lambda number, received: Reply(body=body)) as server:
        failed = _ask(server)
    assert isinstance(failed, LabelFailed)
    assert failed.reason == "an answer that is no chat completion"


@pytest.mark.parametrize("reply", [said(None), Reply(body=b'{"choices": []}')])
def test_a_completion_without_text_is_told_as_such(reply: Reply) -> None:
    with model_server(lambda number, received: reply) as server:
        failed = _ask(server)
    assert isinstance(failed, LabelFailed)
    assert failed.reason == "an answer without text"


def test_an_answer_that_is_too_long_is_not_read_to_its_end() -> None:
    with model_server(lambda number, received: said("x" * (40 * MAX_ANSWER_BYTES))) as server:
        failed = _ask(server)
    assert isinstance(failed, LabelFailed)
    assert failed.reason == f"an answer of more than {MAX_ANSWER_BYTES} bytes"


def test_a_compressed_answer_is_not_unpacked() -> None:
    packed = gzip.compress(said("x" * 10_000_000).body)
    reply = Reply(body=packed, headers={"Content-Encoding": "gzip"})
    with model_server(lambda number, received: reply) as server:
        failed = _ask(server)
    assert isinstance(failed, LabelFailed)
    assert failed.reason.startswith("a compressed answer")
    assert server.received[0].headers["accept-encoding"] == "identity"


def test_an_answer_that_drips_ends_at_the_deadline_of_the_whole() -> None:
    """Every byte comes well within the time that one read may take."""
    reply = Reply(body=said("tea").body, drip=0.05)
    with model_server(lambda number, received: reply) as server:
        start = time.monotonic()
        failed = _ask(server, timeout=0.3)
    assert isinstance(failed, LabelFailed)
    assert (failed.reason, failed.attempts) == ("no answer within 0.3 s", 3)
    assert time.monotonic() - start < 5


def test_an_address_where_nobody_listens_is_told_without_it() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        settings = _settings(f"http://127.0.0.1:{probe.getsockname()[1]}/v1")
        with LabelEndpoint(settings, policy=QUICK) as endpoint, pytest.raises(LabelFailed) as caught:
            endpoint.ask(MESSAGES)
    assert (caught.value.reason, caught.value.attempts) == ("no connection", 3)


class Canceled(Exception):  # noqa: N818
    """What a checkpoint raises."""


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=said("tea").body, drip=1.0),
        Reply(429, headers={"Retry-After": "50"}),
    ],
    ids=["while it waits for an answer", "while it waits to try again"],
)
def test_a_cancel_ends_a_request_at_once(reply: Reply) -> None:
    with model_server(lambda number, received: reply) as server:

        def canceled() -> None:
            if server.received:
                raise Canceled

        start = time.monotonic()
        with pytest.raises(Canceled):
            _ask(server, canceled, timeout=60.0)
        assert time.monotonic() - start < 5
    assert len(server.received) == 1
