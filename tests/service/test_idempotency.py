"""`Idempotency-Key`: one effect, one answer, whatever is repeated and however requests meet."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from litestar.testing import TestClient
from sqlalchemy import select

from atomscope_service.api import keys as keys_module
from atomscope_service.db.models import IdempotencyRow
from tests.service.deployment import DATASET, Tenant, describe

KEY = {"Idempotency-Key": "retry-1"}


def rows(tenant: Tenant) -> list[IdempotencyRow]:
    with tenant.deployment.database.read() as session:
        query = select(IdempotencyRow).where(IdempotencyRow.project_id == tenant.project_id)
        return list(session.scalars(query))


def age(tenant: Tenant, by: timedelta, **columns: Any) -> None:
    (row,) = rows(tenant)
    tenant.change(IdempotencyRow, row.id, created_at=datetime.now(UTC) - by, **columns)


def test_a_repeat_is_answered_as_the_first_time(tenant: Tenant) -> None:
    body = {"purpose": "dataset", "files": describe(DATASET)}
    first = tenant.post("/v1/uploads", json=body, headers=KEY)
    second = tenant.post("/v1/uploads", json=body, headers=KEY)
    assert (first.status_code, second.status_code) == (201, 201)
    assert second.content == first.content
    assert second.headers["Location"] == first.headers["Location"]
    assert second.headers["Content-Type"] == first.headers["Content-Type"]
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert second.headers["X-Request-Id"] != first.headers["X-Request-Id"]
    assert len(tenant.get("/v1/uploads").json()["data"]) == 1


def test_without_a_key_every_request_counts(tenant: Tenant) -> None:
    for _ in range(2):
        tenant.post("/v1/keys", json={"name": "k"})
    assert len(tenant.get("/v1/keys").json()["data"]) == 3
    assert rows(tenant) == []


def test_another_body_under_the_same_key_is_refused(tenant: Tenant) -> None:
    tenant.post("/v1/keys", json={"name": "one"}, headers=KEY)
    answer = tenant.post("/v1/keys", json={"name": "two"}, headers=KEY)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")


def test_one_key_on_two_routes_is_two_keys(tenant: Tenant) -> None:
    audits = [tenant.insert_audit(), tenant.insert_audit()]
    answers = [tenant.post(f"/v1/audits/{audit_id}/cancel", headers=KEY) for audit_id in audits]
    assert [answer.json()["id"] for answer in answers] == audits


def test_the_secret_of_a_new_key_is_not_kept_for_a_replay(tenant: Tenant) -> None:
    first = tenant.post("/v1/keys", json={"name": "k"}, headers=KEY)
    second = tenant.post("/v1/keys", json={"name": "k"}, headers=KEY)
    assert first.json()["key"].startswith("ask_")
    assert second.json() == first.json() | {"key": None}
    (row,) = rows(tenant)
    assert first.json()["key"] not in str(row.body)


def test_a_refusal_is_kept_too(tenant: Tenant) -> None:
    body = {"name": "d", "upload_id": "upl_none"}
    first = tenant.post("/v1/datasets", json=body, headers=KEY)
    second = tenant.post("/v1/datasets", json=body, headers=KEY)
    assert (first.status_code, second.status_code) == (422, 422)
    assert second.headers["Idempotent-Replayed"] == "true"
    assert second.headers["Content-Type"] == "application/problem+json"


def test_an_answer_that_says_try_again_is_not_kept(tenant: Tenant) -> None:
    audit_id = tenant.insert_audit(status="succeeded")
    conflict = tenant.post(f"/v1/audits/{audit_id}/cancel", headers=KEY)
    assert conflict.status_code == 409
    assert rows(tenant) == []


def test_a_failure_gives_the_key_back(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("once")

    with monkeypatch.context() as patched:
        patched.setattr(keys_module, "create_key", fail)
        assert tenant.post("/v1/keys", json={"name": "k"}, headers=KEY).status_code == 500
    assert rows(tenant) == []
    assert tenant.post("/v1/keys", json={"name": "k"}, headers=KEY).status_code == 201


def test_while_the_first_is_running_the_second_is_told_so(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(*_: str) -> None:
        begun.set()
        assert go_on.wait(10)

    monkeypatch.setattr(tenant.deployment.queue, "cancel_requested", slow)
    url = f"/v1/audits/{tenant.insert_audit()}/cancel"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(tenant.post, url, headers=KEY)
        try:
            assert begun.wait(10)
            busy = tenant.post(url, headers=KEY)
        finally:
            go_on.set()
        assert first.result(10).status_code == 202
    assert (busy.status_code, busy.json()["code"]) == (409, "idempotency_in_progress")
    assert busy.headers["Retry-After"]
    assert tenant.post(url, headers=KEY).headers["Idempotent-Replayed"] == "true"


def test_requests_that_arrive_together_have_one_effect(tenant: Tenant) -> None:
    start = threading.Barrier(8)

    def send(_: int) -> Any:
        start.wait()
        return tenant.post("/v1/keys", json={"name": "once"}, headers=KEY)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(8)))
    assert {answer.status_code for answer in answers} <= {201, 409}
    made = {answer.json()["id"] for answer in answers if answer.status_code == 201}
    assert len(made) == 1
    assert sum(key["name"] == "once" for key in tenant.get("/v1/keys").json()["data"]) == 1
    assert sum(bool(answer.json().get("key")) for answer in answers) == 1


def test_a_request_that_died_gives_its_place_away(tenant: Tenant) -> None:
    tenant.post("/v1/keys", json={"name": "k"}, headers=KEY)
    age(tenant, timedelta(minutes=14), status=None)
    assert tenant.post("/v1/keys", json={"name": "k"}, headers=KEY).status_code == 409
    age(tenant, timedelta(minutes=16), status=None)
    assert tenant.post("/v1/keys", json={"name": "k"}, headers=KEY).status_code == 201
    replay = tenant.post("/v1/keys", json={"name": "k"}, headers=KEY)
    assert replay.headers["Idempotent-Replayed"] == "true"


def test_after_a_day_a_key_is_new(tenant: Tenant) -> None:
    tenant.post("/v1/keys", json={"name": "k"}, headers=KEY)
    age(tenant, timedelta(hours=23))
    assert "Idempotent-Replayed" in tenant.post("/v1/keys", json={"name": "k"}, headers=KEY).headers
    age(tenant, timedelta(hours=25))
    answer = tenant.post("/v1/keys", json={"name": "another"}, headers=KEY)
    assert (answer.status_code, answer.json()["name"]) == (201, "another")
    assert len(rows(tenant)) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", b"\xc3\xbc"])
def test_a_malformed_key_is_refused(tenant: Tenant, key: str | bytes) -> None:
    answer = tenant.post("/v1/keys", json={"name": "k"}, headers={"Idempotency-Key": key})  # type: ignore[dict-item]
    assert (answer.status_code, answer.json()["param"]) == (400, "Idempotency-Key")


def test_without_an_api_key_nothing_is_kept_or_replayed(tenant: Tenant, client: TestClient) -> None:
    tenant.post("/v1/keys", json={"name": "k"}, headers=KEY)
    assert client.post("/v1/keys", json={"name": "k"}, headers=KEY).status_code == 401
