"""Following an audit and waiting for its end, through streams that break."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest

import atomscope
from atomscope import AsyncClient, Client
from atomscope.client._progress import StageBars
from atomscope.types.resources import Event
from tests.sdk.client.samples import AUDIT, audit, event, sse
from tests.sdk.client.scenario import KEY, Ask
from tests.sdk.client.server import Answer, Chunks, Got, ScriptedServer, page, problem

EVENTS = f"/v1/audits/{AUDIT}/events"
QUEUED, RUNNING, STAGE = (
    event(1, "audit.queued"),
    event(2, "audit.running"),
    event(3, "audit.stage", stage="extract"),
)
DONE = event(4, "audit.succeeded")


def _stream(*events: dict[str, Any], clean: bool = True) -> Chunks:
    return Chunks([(0.0, b": atomscope\n\n"), *((0.0, sse(told)) for told in events)], clean)


def _audit(server: ScriptedServer, *statuses: str, **changes: Any) -> None:
    server.on("GET", f"/v1/audits/{AUDIT}", *(Answer(200, audit(status, **changes)) for status in statuses))


def _wait(ask: Ask, **options: Any) -> Any:
    return ask(ask.steps(lambda c: c.audits.get(AUDIT), lambda a: a.wait(**options)))


def test_a_stream_that_breaks_is_taken_up_where_it_broke(server: ScriptedServer, ask: Ask) -> None:
    _audit(server, "running")
    broken = Chunks([(0.0, sse(QUEUED)), (0.0, sse(RUNNING)), (0.0, sse(STAGE)[:30])], clean=False)
    server.on(
        "GET", EVENTS, broken, Answer(drop=True), Answer(503, b"restarting"), _stream(RUNNING, STAGE, DONE)
    )
    got = ask(ask.steps(lambda c: c.audits.get(AUDIT), lambda a: a.follow()))
    assert [each.sequence for each in got] == [1, 2, 3, 4]
    assert [each.headers["Last-Event-ID"] for each in server.to("GET", EVENTS)] == [None, "2", "2", "2"]
    assert all(each.headers["Accept"] == "text/event-stream" for each in server.to("GET", EVENTS))


def test_text_of_any_kind_survives_the_stream(server: ScriptedServer, ask: Ask) -> None:
    _audit(server, "running")
    odd = event(1, "audit.warning", detail="a\u2028b\u0085c\u001fd\n\r\nid: 7")
    server.on("GET", EVENTS, _stream(odd, event(2, "audit.failed")))
    got = ask(ask.steps(lambda c: c.audits.get(AUDIT), lambda a: a.follow()))
    assert got[0].data == odd["data"]


def test_wait_tells_every_event_once_and_returns_the_audit(server: ScriptedServer, ask: Ask) -> None:
    _audit(server, "running", "succeeded")
    server.on("GET", EVENTS, _stream(QUEUED, RUNNING, clean=False), _stream(RUNNING, STAGE, DONE))
    told: list[int] = []
    done = _wait(ask, on_event=lambda each: told.append(each.sequence))
    assert (done.status, told) == ("succeeded", [1, 2, 3, 4])


def test_wait_may_be_told_by_a_coroutine(server: ScriptedServer) -> None:
    _audit(server, "succeeded")
    server.on("GET", EVENTS, _stream(QUEUED, DONE))
    told: list[str] = []

    async def scenario() -> None:
        async def on_event(each: Any) -> None:
            await asyncio.sleep(0)
            told.append(each.type)

        async with AsyncClient(base_url=server.url, api_key=KEY) as client:
            await (await client.audits.get(AUDIT)).wait(on_event=on_event)

    asyncio.run(scenario())
    assert told == ["audit.queued", "audit.succeeded"]


def test_an_audit_that_failed_raises_its_own_reason(server: ScriptedServer, ask: Ask) -> None:
    error = {"code": "bad_row", "detail": "row 3 is no JSON", "errors": [{"line": 3, "message": "no JSON"}]}
    _audit(server, "failed", error=error)
    server.on("GET", EVENTS, _stream(QUEUED, event(2, "audit.failed")))
    with pytest.raises(atomscope.AuditFailed, match="row 3 is no JSON") as caught:
        _wait(ask)
    assert (caught.value.audit_id, caught.value.code) == (AUDIT, "bad_row")
    assert caught.value.errors == error["errors"]


def test_a_failure_without_a_reason_is_a_failure(server: ScriptedServer, ask: Ask) -> None:
    _audit(server, "failed")
    server.on("GET", EVENTS, _stream(event(1, "audit.failed")))
    with pytest.raises(atomscope.AuditFailed):
        _wait(ask)


def test_an_audit_that_was_canceled_raises(server: ScriptedServer, ask: Ask) -> None:
    _audit(server, "running", "canceled")
    server.on("GET", EVENTS, _stream(event(1, "audit.canceled")))
    with pytest.raises(atomscope.AuditCanceled):
        _wait(ask)


def test_a_stream_that_ends_with_nothing_new_asks_how_the_audit_is(server: ScriptedServer, ask: Ask) -> None:
    _audit(server, "running", "succeeded")
    server.on("GET", EVENTS, _stream())
    assert _wait(ask).status == "succeeded"


@pytest.mark.parametrize("heartbeat", [0.15, 30.0])
def test_the_timeout_holds_with_and_without_heartbeats(
    server: ScriptedServer, ask: Ask, heartbeat: float
) -> None:
    _audit(server, "running")
    server.on("GET", EVENTS, Chunks([(0.0, sse(QUEUED))] + [(heartbeat, b": waiting\n\n")] * 40))
    start = time.monotonic()
    with pytest.raises(atomscope.WaitTimeout, match="goes on"):
        _wait(ask, timeout=0.5)
    assert 0.45 <= time.monotonic() - start < 2.0


def test_a_service_that_stays_away_ends_the_wait(
    server: ScriptedServer, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atomscope.client._audits._MAX_FAILURES", 3)
    _audit(server, "running")
    server.on("GET", EVENTS, Answer(drop=True))
    with pytest.raises(atomscope.APIConnectionError):
        _wait(ask)
    assert len(server.to("GET", EVENTS)) == 4


def test_a_refused_stream_is_raised_at_once(server: ScriptedServer, ask: Ask) -> None:
    _audit(server, "running")
    server.on("GET", EVENTS, Answer(404, problem(404, "not_found")))
    with pytest.raises(atomscope.NotFoundError):
        _wait(ask)
    assert len(server.to("GET", EVENTS)) == 1


@pytest.mark.parametrize("data", ["no json", '{"sequence": 1}', "[]"])
def test_what_is_no_event_is_an_api_error(server: ScriptedServer, ask: Ask, data: str) -> None:
    _audit(server, "running")
    server.on("GET", EVENTS, Chunks([(0.0, f"data: {data}\n\n".encode())]))
    with pytest.raises(atomscope.APIError, match="something else than an event"):
        _wait(ask)


def test_leaving_early_gives_the_connection_back(server: ScriptedServer) -> None:
    _audit(server, "running")
    server.on("GET", EVENTS, Chunks([(0.0, sse(QUEUED)), (0.0, sse(RUNNING)), (60.0, b"")]))
    with Client(base_url=server.url, api_key=KEY) as client:
        for each in client.audits.get(AUDIT).follow():
            assert each.sequence == 1
            break
        pool = client._service._transport._http._transport._pool  # the only witness of a leak
        assert all(connection.is_idle() or connection.is_closed() for connection in pool.connections)


def test_an_exception_of_the_callback_ends_the_wait(server: ScriptedServer, ask: Ask) -> None:
    _audit(server, "running")
    server.on("GET", EVENTS, _stream(QUEUED, DONE))

    def on_event(each: Any) -> None:
        raise KeyError(each.type)

    with pytest.raises(KeyError, match=r"audit\.queued"):
        _wait(ask, on_event=on_event)


def test_past_events_are_read_page_by_page(server: ScriptedServer, ask: Ask) -> None:
    _audit(server, "running")
    server.on("GET", EVENTS, Answer(200, page([QUEUED, RUNNING], "c1")), Answer(200, page([STAGE])))
    got = ask(ask.steps(lambda c: c.audits.get(AUDIT), lambda a: a.events(after=0)))
    assert [each.sequence for each in got] == [1, 2, 3]
    assert [each.query.get("cursor") for each in server.to("GET", EVENTS)] == [None, "c1"]


def test_a_progress_bar_is_drawn_only_when_asked_or_on_a_terminal(
    server: ScriptedServer, ask: Ask, capfd: pytest.CaptureFixture[str]
) -> None:
    _audit(server, "running", "succeeded")
    hostile = event(2, "audit.progress", stage="extract", done=3, total=12, unit="\x1b[31m[red]x")
    server.on("GET", EVENTS, _stream(QUEUED, hostile, event(3, "audit.succeeded")))
    _wait(ask)
    assert capfd.readouterr().err == ""
    _wait(ask, progress=True)
    drawn = capfd.readouterr().err
    assert "extract" in drawn
    assert "\x1b[31m" not in drawn


def test_last_event_id_is_not_sent_for_the_beginning(server: ScriptedServer, ask: Ask) -> None:
    seen: list[str | None] = []

    def answer(got: Got) -> Chunks:
        seen.append(got.headers["Last-Event-ID"])
        return _stream(event(8, "audit.succeeded"))

    _audit(server, "succeeded")
    server.on("GET", EVENTS, answer)
    ask(ask.steps(lambda c: c.audits.get(AUDIT), lambda a: a.follow(after=7)))
    assert seen == ["7"]


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ({"done": 3, "total": 12}, "3/12"),
        ({"done": 0, "total": 12, "units_done": 2, "units": 4}, "6/12"),
        ({"done": 9, "total": 12, "units_done": 2, "units": 4}, "9/12"),
        ({"done": 1, "total": 12, "units_done": 0, "units": 0}, "1/12"),
        ({"done": None, "total": "12"}, "0/?"),
    ],
)
def test_the_bar_counts_shards_whose_documents_were_never_counted(
    capfd: pytest.CaptureFixture[str], counts: dict[str, Any], shown: str
) -> None:
    bars = StageBars()
    bars.event(
        msgspec.convert(event(1, "audit.progress", stage="extract", unit="documents", **counts), Event)
    )
    bars._bars.refresh()
    bars._bars.stop()
    assert shown in capfd.readouterr().err
