"""An audit's history as a list and as a stream, over a real HTTP server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from atomscope_service.api import events as events_module
from atomscope_service.app import create_app
from atomscope_service.db.events import append_event
from atomscope_service.db.models import AuditRow
from tests.service.deployment import Deployment, Tenant
from tests.service.server import serving

SSE = {"Accept": "text/event-stream"}


@pytest.fixture(scope="module")
def server(deployment: Deployment) -> Iterator[str]:
    with serving(create_app(deployment.settings, deployment.queue)) as base_url:
        yield base_url


@pytest.fixture
def http(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=10) as client:
        yield client


@pytest.fixture
def owner(deployment: Deployment, http: httpx.Client) -> Tenant:
    return Tenant(deployment, http)


def tell(owner: Tenant, audit_id: str, *types: str, status: str | None = None, **data: Any) -> None:
    """Append events, as control does."""
    with owner.deployment.database.write() as session:
        row = session.get_one(AuditRow, audit_id)
        for kind in types:
            append_event(session, row, kind, data)
        if status is not None:
            row.status = status


def parse(text: str) -> list[dict[str, Any]]:
    """Events of a whole stream; comments are left out."""
    events: list[dict[str, Any]] = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and line[0] != ":")
        if fields:
            event = json.loads(fields["data"])
            assert (fields["id"], fields["event"]) == (str(event["sequence"]), event["type"])
            events.append(event)
    return events


def stream(owner: Tenant, audit_id: str, **headers: str) -> list[int]:
    """Sequences of a stream that ends by itself."""
    answer = owner.get(f"/v1/audits/{audit_id}/events", headers=SSE | headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    return [event["sequence"] for event in parse(answer.text)]


def test_the_list_is_oldest_first_and_walked_by_cursor(owner: Tenant) -> None:
    audit_id = owner.insert_audit()
    tell(owner, audit_id, *["audit.progress"] * 5)
    url = f"/v1/audits/{audit_id}/events"
    first = owner.get(f"{url}?limit=2").json()
    second = owner.get(f"{url}?limit=2&cursor={first['next']}").json()
    third = owner.get(f"{url}?limit=2&cursor={second['next']}").json()
    pages = [[event["sequence"] for event in page["data"]] for page in (first, second, third)]
    assert pages == [[1, 2], [3, 4], [5]]
    assert third["next"] is None
    assert [event["sequence"] for event in owner.get(f"{url}?after=3").json()["data"]] == [4, 5]


@pytest.mark.parametrize("query", ["after=-1", "after=99999999999", "after=x"])
def test_a_bad_sequence_is_refused(owner: Tenant, query: str) -> None:
    assert owner.get(f"/v1/audits/{owner.insert_audit()}/events?{query}").status_code == 400


def test_an_ended_audit_streams_its_history_and_closes(owner: Tenant) -> None:
    audit_id = owner.insert_audit()
    tell(owner, audit_id, "audit.queued", "audit.running", text="\n\ndata: forged\n\x1b[31m")
    tell(owner, audit_id, "audit.failed", status="failed")
    assert stream(owner, audit_id) == [1, 2, 3]
    answer = owner.get(f"/v1/audits/{audit_id}/events", headers=SSE)
    assert parse(answer.text)[0]["data"] == {"text": "\n\ndata: forged\n\x1b[31m"}


def test_a_stream_is_taken_up_after_the_last_event_id(owner: Tenant) -> None:
    audit_id = owner.insert_audit(status="canceled")
    tell(owner, audit_id, "audit.queued", "audit.running", "audit.canceled")
    assert stream(owner, audit_id, **{"Last-Event-ID": "1"}) == [2, 3]
    assert stream(owner, audit_id, **{"Last-Event-ID": "3"}) == []
    assert stream(owner, audit_id, **{"Last-Event-ID": "99"}) == []


@pytest.mark.parametrize("last", ["x", "-1", "1; drop", "9" * 30])
def test_a_bad_last_event_id_is_refused(owner: Tenant, last: str) -> None:
    headers = SSE | {"Last-Event-ID": last}
    answer = owner.get(f"/v1/audits/{owner.insert_audit()}/events", headers=headers)
    assert (answer.status_code, answer.json()["param"]) == (400, "Last-Event-ID")


def test_a_long_history_comes_whole(owner: Tenant) -> None:
    audit_id = owner.insert_audit()
    tell(owner, audit_id, *["audit.progress"] * 450)
    tell(owner, audit_id, "audit.succeeded", status="succeeded")
    assert stream(owner, audit_id) == list(range(1, 452))


def test_events_arrive_as_they_happen_with_comments_in_between(owner: Tenant) -> None:
    audit_id = owner.insert_audit(status="running")
    tell(owner, audit_id, "audit.running")
    received: list[str] = []
    with owner.http.stream("GET", f"/v1/audits/{audit_id}/events", headers=owner.headers | SSE) as answer:
        for line in answer.iter_lines():
            received.append(line)
            if line == "event: audit.running":
                tell(owner, audit_id, "audit.progress", done=1)
            if line == ": waiting" and received.count(": waiting") == 2:
                tell(owner, audit_id, "audit.succeeded", status="succeeded")
    kinds = [line.removeprefix("event: ") for line in received if line.startswith("event: ")]
    assert kinds == ["audit.running", "audit.progress", "audit.succeeded"]


def test_a_client_that_leaves_stops_the_polling(owner: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    audit_id = owner.insert_audit(status="running")
    polls = threading.Semaphore(0)
    read = events_module.read_events

    def counted(*arguments: Any) -> Any:
        if arguments[1] == audit_id:
            polls.release()
        return read(*arguments)

    monkeypatch.setattr(events_module, "read_events", counted)
    with owner.http.stream("GET", f"/v1/audits/{audit_id}/events", headers=owner.headers | SSE) as answer:
        next(answer.iter_lines())
        assert polls.acquire(timeout=10)
        assert polls.acquire(timeout=10)
    deadline = time.monotonic() + 10
    while polls.acquire(timeout=0.5):  # polls come every 0.02 s while the stream lives
        assert time.monotonic() < deadline, "the stream is still read after its client left"


def test_a_deleted_audit_ends_its_stream(owner: Tenant) -> None:
    audit_id = owner.insert_audit(status="running")
    seen: list[str] = []
    with owner.http.stream("GET", f"/v1/audits/{audit_id}/events", headers=owner.headers | SSE) as answer:
        for line in answer.iter_lines():
            if not seen:
                with owner.deployment.database.write() as session:
                    session.delete(session.get_one(AuditRow, audit_id))
            seen.append(line)
    assert seen[0] == ": atomscope"


def test_a_stream_of_no_audit_is_a_problem(owner: Tenant) -> None:
    answer = owner.get("/v1/audits/aud_none/events", headers=SSE)
    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")


@pytest.mark.parametrize(
    ("accept", "streamed"),
    [
        ("application/json", False),
        ("*/*", False),
        ("text/event-stream", True),
        ("text/event-stream, application/json;q=0.5", True),
        ("application/json, text/event-stream;q=0.5", False),
    ],
)
def test_accept_decides_what_comes(owner: Tenant, accept: str, streamed: bool) -> None:
    audit_id = owner.insert_audit(status="failed")
    answer = owner.get(f"/v1/audits/{audit_id}/events", headers={"Accept": accept})
    assert answer.headers["Content-Type"].startswith("text/event-stream") == streamed


def test_a_part_is_not_held_in_memory(
    owner: Tenant, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """48 MiB are sent while the peak of the process's own allocations stays under 16."""
    import hashlib
    import tracemalloc

    size = 48 * 1024 * 1024
    block = bytes(1024 * 1024)
    digest = hashlib.sha256(block * 48).hexdigest()
    body = {"purpose": "dataset", "files": [{"path": "d.jsonl", "size": size, "sha256": digest}]}
    upload = owner.post("/v1/uploads", json=body).json()
    url = upload["files"][0]["parts"][0]["url"].replace(deployment.settings.base_url, "")
    tracemalloc.start()
    try:
        answer = owner.http.put(url, content=(block for _ in range(48)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status_code == 200
    assert peak < 16 * 1024 * 1024
    completed = [{"path": "d.jsonl", "parts": [{"number": 1, "etag": answer.headers["ETag"]}]}]
    assert owner.post(f"/v1/uploads/{upload['id']}/complete", json={"files": completed}).status_code == 200


def test_a_client_that_leaves_in_the_middle_of_a_part_leaves_nothing(
    owner: Tenant, deployment: Deployment
) -> None:
    import socket
    from urllib.parse import urlsplit

    body = {"purpose": "dataset", "files": [{"path": "d.jsonl", "size": 4_000_000, "sha256": "0" * 64}]}
    upload = owner.post("/v1/uploads", json=body).json()
    target = upload["files"][0]["parts"][0]["url"].replace(deployment.settings.base_url, "")
    address = urlsplit(str(owner.http.base_url))
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = f"PUT {target} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 4000000\r\n\r\n"
        connection.sendall(head.encode() + bytes(2_000_000))
        time.sleep(0.2)
    folder = deployment.store.local_path(f"projects/{owner.project_id}")
    assert folder is not None
    deadline = time.monotonic() + 10
    while files := [path for path in folder.rglob("*") if path.is_file()]:
        assert time.monotonic() < deadline, files
        time.sleep(0.05)
