"""Attributions: asking, listing, reading and deleting them, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from atomscope.errors import AtomscopeError
from atomscope.types.atoms import DocumentRef
from atomscope.types.attribution import MAX_QUERY_DEPTH, AttributedAtom, AttributionResult
from atomscope.types.jobs import result_key
from atomscope_service.api import jobs
from atomscope_service.db.models import JobRow
from atomscope_service.db.repositories import Repositories
from atomscope_service.ids import new_id
from tests.service.bundles import ESCAPES
from tests.service.deployment import Tenant

QUERY = {"prompt": "What is 2 plus 5?", "completion": "The sum is 7."}
RESULT = AttributionResult(
    form="chat",
    n_tokens=12,
    n_target_tokens=5,
    loss=3.0,
    base_loss=9.0,
    gradient_norm=0.5,
    explained=0.25,
    exact=True,
    atoms=[
        AttributedAtom(atom=1, rank=1, value=0.4, cosine=0.6, behaviour=None, keywords=["sum"], label=None)
    ],
    behaviours=[],
    documents=[DocumentRef(document=3, value=0.9, preview=ESCAPES)],
)


@pytest.fixture
def audit(tenant: Tenant) -> str:
    return tenant.insert_audit(status="succeeded", bundle_prefix="projects/p/audits/a/bundle-a1-f1/")


def url(audit: str) -> str:
    return f"/v1/audits/{audit}/attributions"


def asked(tenant: Tenant, audit: str, **query: Any) -> dict[str, Any]:
    answer = tenant.post(url(audit), json=QUERY | query)
    assert answer.status_code == 202, answer.text
    return answer.json()


def finish(tenant: Tenant, audit: str, job_id: str, content: bytes | None = None) -> None:
    """Do a job as worker and control would."""
    key = result_key(tenant.project_id, audit, job_id, 1)
    tenant.deployment.store.put_bytes(key, msgspec.json.encode(RESULT) if content is None else content)
    ended = datetime.now(UTC)
    tenant.change(JobRow, job_id, status="succeeded", result_key=key, started_at=ended, ended_at=ended)


def prefixes(tenant: Tenant) -> list[str]:
    with tenant.deployment.database.read() as session:
        return [row.prefix for row in Repositories(session, tenant.project_id).deletions.page(limit=100)]


# --------------------------------------------------------------------- asking


def test_an_attribution_is_queued_with_its_query_filled_in(tenant: Tenant, audit: str) -> None:
    answer = tenant.post(url(audit), json=QUERY)
    assert answer.status_code == 202
    made = answer.json()
    assert answer.headers["Location"] == f"{url(audit)}/{made['id']}"
    assert made["id"].startswith("atr_")
    assert made["query"] == QUERY | {"messages": None, "exact": False, "documents": 20}
    told = {name: made[name] for name in ("object", "audit", "status", "progress", "result", "error")}
    assert told == {
        "object": "attribution",
        "audit": audit,
        "status": "queued",
        "progress": None,
        "result": None,
        "error": None,
    }
    assert ("job_added", tenant.project_id, made["id"]) in tenant.deployment.queue.told
    assert tenant.get(answer.headers["Location"]).json() == made


def test_messages_are_kept_as_they_were_given(tenant: Tenant, audit: str) -> None:
    messages = [
        {"role": "user", "content": "ünï"},
        {"role": "assistant", "content": None, "tool_calls": [{"n": 2**70, "x": 0.1}]},
    ]
    answer = tenant.post(url(audit), json={"messages": messages, "documents": 0})
    assert answer.status_code == 202
    shown = tenant.get(answer.headers["Location"]).json()["query"]
    assert (shown["messages"], shown["documents"], shown["prompt"]) == (messages, 0, None)


def test_a_broker_that_is_down_does_not_lose_the_query(tenant: Tenant, audit: str) -> None:
    tenant.deployment.queue.failure = AtomscopeError("no broker")
    try:
        made = asked(tenant, audit)
    finally:
        tenant.deployment.queue.failure = None
    assert tenant.get(f"{url(audit)}/{made['id']}").json()["status"] == "queued"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "are expected"),
        ({"prompt": "a"}, "expected together"),
        ({"completion": "a"}, "expected together"),
        ({"prompt": "a", "completion": ""}, "not empty"),
        ({**QUERY, "messages": [{"role": "user", "content": "a"}]}, "are expected"),
        ({"messages": []}, "messages"),
        ({"messages": ["a"]}, "messages"),
        ({"messages": [{}] * 1025}, "messages"),
        ({**QUERY, "documents": 1001}, "documents"),
        ({**QUERY, "documents": -1}, "documents"),
        ({**QUERY, "documents": "5"}, "documents"),
        ({**QUERY, "exact": "yes"}, "exact"),
        ({**QUERY, "surprise": 1}, "surprise"),
        ({"prompt": "a\0", "completion": "b"}, "U+0000"),
        ({"messages": [{"role": "user", "content": {"deep": ["a\0"]}}]}, "U+0000"),
        ({"prompt": 5, "completion": "b"}, "prompt"),
    ],
)
def test_what_is_no_query_is_refused(tenant: Tenant, audit: str, body: dict[str, Any], told: str) -> None:
    answer = tenant.post(url(audit), json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert told in answer.text
    assert tenant.get(url(audit)).json()["data"] == []


@pytest.mark.parametrize("depth", [MAX_QUERY_DEPTH, 200, 900, 5_000, 100_000])
def test_a_query_that_is_nested_deeply_is_refused(tenant: Tenant, audit: str, depth: int) -> None:
    body = b'{"messages": [{"x": ' + b"[" * depth + b"]" * depth + b"}]}"
    answer = tenant.post(url(audit), content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert "nested" in answer.text


@pytest.mark.parametrize("status", ["queued", "running", "canceling", "failed", "canceled"])
def test_only_an_audit_that_has_succeeded_answers(tenant: Tenant, status: str) -> None:
    answer = tenant.post(url(tenant.insert_audit(status=status)), json=QUERY)
    assert (answer.status_code, answer.json()["code"]) == (409, "audit_not_succeeded")
    assert status in answer.json()["detail"]


def test_too_many_that_wait_are_refused_until_one_has_ended(
    tenant: Tenant, audit: str, other: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(jobs.MOST_LIVE, "attribution", 2)
    first, _ = asked(tenant, audit), asked(tenant, audit)
    answer = tenant.post(url(audit), json=QUERY)
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_attributions")
    assert int(answer.headers["Retry-After"]) > 0
    asked(other, other.insert_audit(status="succeeded"))  # another project's do not count
    finish(tenant, audit, first["id"])
    asked(tenant, audit)


def test_a_repeated_request_asks_once(tenant: Tenant, audit: str) -> None:
    headers = {"Idempotency-Key": "ask-1"}
    first, second = (tenant.post(url(audit), json=QUERY, headers=headers) for _ in range(2))
    assert first.json() == second.json()
    assert second.headers["Location"] == first.headers["Location"]
    assert len(tenant.get(url(audit)).json()["data"]) == 1
    other = tenant.post(url(audit), json=QUERY | {"exact": True}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


# -------------------------------------------------------------------- reading


def test_a_result_is_shown_of_one_and_left_out_of_lists(tenant: Tenant, audit: str) -> None:
    made = asked(tenant, audit)
    finish(tenant, audit, made["id"])
    answer = tenant.get(f"{url(audit)}/{made['id']}")
    shown = answer.json()
    assert shown["status"] == "succeeded"
    assert shown["result"] == msgspec.to_builtins(RESULT)
    assert shown["ended_at"] is not None
    listed = tenant.get(url(audit)).json()["data"]
    assert listed == [shown | {"result": None}]
    again = tenant.get(f"{url(audit)}/{made['id']}", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_etag_changes_with_the_state(tenant: Tenant, audit: str) -> None:
    made = asked(tenant, audit)
    path = f"{url(audit)}/{made['id']}"
    before = tenant.get(path).headers["ETag"]
    finish(tenant, audit, made["id"])
    assert tenant.get(path, headers={"If-None-Match": before}).status_code == 200


def test_progress_is_shown_while_it_runs(tenant: Tenant, audit: str) -> None:
    made = asked(tenant, audit)
    tenant.change(JobRow, made["id"], status="running", done=2, total=5)
    shown = tenant.get(f"{url(audit)}/{made['id']}").json()
    assert (shown["status"], shown["progress"]) == ("running", {"done": 2, "total": 5, "unit": "steps"})


def test_an_error_is_shown_once_it_is_the_last(tenant: Tenant, audit: str) -> None:
    made = asked(tenant, audit)
    path = f"{url(audit)}/{made['id']}"
    problem = {"file": "query", "line": 1, "field": "messages[1].role", "message": "no role"}
    error = {"code": "bad_row", "detail": "the query cannot be used", "errors": [problem]}
    tenant.change(JobRow, made["id"], error=error | {"excused": 1})
    assert tenant.get(path).json()["error"] is None, "it is tried again"
    tenant.change(JobRow, made["id"], status="failed", ended_at=datetime.now(UTC))
    assert tenant.get(path).json()["error"] == error
    assert tenant.get(url(audit)).json()["data"][0]["error"] == error


@pytest.mark.parametrize("content", [b"{", b"{}", b" " * (9 * 2**20)], ids=["cut", "empty", "large"])
def test_a_result_that_was_changed_in_the_store_is_told_of(
    tenant: Tenant, audit: str, content: bytes
) -> None:
    made = asked(tenant, audit)
    finish(tenant, audit, made["id"], content)
    answer = tenant.get(f"{url(audit)}/{made['id']}")
    assert (answer.status_code, answer.json()["code"]) == (500, "result_unreadable")
    assert tenant.get(url(audit)).status_code == 200


def test_lists_are_of_one_audit_newest_first_and_paged(tenant: Tenant, audit: str) -> None:
    ids = [asked(tenant, audit)["id"] for _ in range(3)]
    asked(tenant, tenant.insert_audit(status="succeeded"))
    first = tenant.get(f"{url(audit)}?limit=2").json()
    assert [item["id"] for item in first["data"]] == [ids[2], ids[1]]
    second = tenant.get(f"{url(audit)}?limit=2&cursor={first['next']}").json()
    assert ([item["id"] for item in second["data"]], second["has_more"]) == ([ids[0]], False)
    elsewhere = url(tenant.insert_audit(status="succeeded"))
    assert tenant.get(f"{elsewhere}?cursor={first['next']}").json()["code"] == "invalid_cursor"


def test_an_attribution_is_not_found_under_another_audit(tenant: Tenant, audit: str) -> None:
    made = asked(tenant, audit)
    elsewhere = url(tenant.insert_audit(status="succeeded"))
    for method in ("GET", "DELETE"):
        for path in (f"{elsewhere}/{made['id']}", f"{url(audit)}/{new_id('atr')}", f"{url(audit)}/x"):
            answer = tenant.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert tenant.get(f"{url(audit)}/{made['id']}").status_code == 200


def test_an_unknown_audit_is_not_found(tenant: Tenant) -> None:
    for answer in (tenant.get(url("aud_0")), tenant.post(url("aud_0"), json=QUERY)):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


# ------------------------------------------------------------------- deleting


@pytest.mark.parametrize("status", ["queued", "running", "succeeded", "failed"])
def test_deleting_takes_the_result_along_whatever_the_state(tenant: Tenant, audit: str, status: str) -> None:
    made = asked(tenant, audit)
    tenant.change(JobRow, made["id"], status=status)
    path = f"{url(audit)}/{made['id']}"
    assert tenant.delete(path).json() == {"id": made["id"], "deleted": True}
    assert tenant.get(path).status_code == 404
    assert tenant.delete(path).status_code == 404
    assert prefixes(tenant) == [f"projects/{tenant.project_id}/audits/{audit}/jobs/{made['id']}/"]
    assert ("deletions_added",) in tenant.deployment.queue.told


def test_attributions_go_with_their_audit_and_what_a_worker_still_writes_does_too(
    tenant: Tenant, audit: str
) -> None:
    live, done = asked(tenant, audit), asked(tenant, audit)
    finish(tenant, audit, done["id"])
    assert tenant.delete(f"/v1/audits/{audit}").status_code == 200
    assert tenant.get(url(audit)).status_code == 404
    root = f"projects/{tenant.project_id}/audits/{audit}/"
    assert set(prefixes(tenant)) == {root, f"{root}jobs/{live['id']}/"}
