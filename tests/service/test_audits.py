"""Audits: creation, cancel, delete, what they hold on to, and keys of a project."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from litestar.testing import TestClient

from atomscope.errors import AtomscopeError
from atomscope.types.presets import PRESETS, preset
from atomscope_service.db.events import append_event
from atomscope_service.db.models import AuditRow, ModelRow, UnitRow
from atomscope_service.db.repositories import Repositories
from atomscope_service.ids import new_id
from tests.service.deployment import BASE_URL, Deployment, Tenant

HUB = {"name": "m", "hub_id": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": "a" * 40}


@pytest.fixture
def inputs(tenant: Tenant) -> dict[str, str]:
    return tenant.make_inputs()


def prefixes(tenant: Tenant) -> list[str]:
    with tenant.deployment.database.read() as session:
        return [row.prefix for row in Repositories(session, tenant.project_id).deletions.page(limit=100)]


def test_an_audit_is_queued_with_every_default_filled_in(tenant: Tenant, inputs: dict[str, str]) -> None:
    body = inputs | {"name": "nightly", "config": {"components": 7}, "metadata": {"team": "red ünit"}}
    answer = tenant.post("/v1/audits", json=body)
    assert answer.status_code == 202
    audit = answer.json()
    assert answer.headers["Location"] == f"/v1/audits/{audit['id']}"
    assert (audit["status"], audit["stage"], audit["progress"], audit["error"]) == (
        "queued",
        None,
        None,
        None,
    )
    assert (audit["config"]["components"], audit["config"]["preconditioner"]) == (7, "ekfac-full")
    assert {field: audit[field] for field in inputs} == inputs
    assert audit["metadata"] == {"team": "red ünit"}
    assert ("audit_created", tenant.project_id, audit["id"]) in tenant.deployment.queue.told
    assert tenant.get(f"/v1/audits/{audit['id']}").json() == audit
    events = tenant.get(f"/v1/audits/{audit['id']}/events").json()["data"]
    assert [(event["sequence"], event["type"]) for event in events] == [(1, "audit.queued")]


def test_settings_given_win_over_those_of_the_preset(tenant: Tenant, inputs: dict[str, str]) -> None:
    body = inputs | {"preset": "paper", "config": {"n_atoms": 7, "seed": 0}}
    config = tenant.post("/v1/audits", json=body).json()["config"]
    assert config == msgspec.to_builtins(preset("paper", n_atoms=7))


def test_an_unknown_preset_is_refused_with_those_there_are(tenant: Tenant, inputs: dict[str, str]) -> None:
    answer = tenant.post("/v1/audits", json=inputs | {"preset": "best"})
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["param"]) == (400, "invalid_request", "preset")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "one of default, top-components, paper" in problem["errors"][0]["message"]
    assert tenant.get("/v1/audits").json()["data"] == []


def test_settings_that_contradict_the_preset_are_refused(tenant: Tenant, inputs: dict[str, str]) -> None:
    answer = tenant.post("/v1/audits", json=inputs | {"preset": "paper", "config": {"codes": "nonnegative"}})
    assert (answer.status_code, answer.json()["param"]) == (400, "config")
    assert "`signed`" in answer.json()["detail"]


def test_presets_are_listed(tenant: Tenant) -> None:
    listing = tenant.get("/v1/presets").json()
    assert (listing["has_more"], listing["next"]) == (False, None)
    assert listing["data"] == msgspec.to_builtins(list(PRESETS.values()))


def test_a_broker_that_is_down_does_not_lose_the_audit(tenant: Tenant, inputs: dict[str, str]) -> None:
    tenant.deployment.queue.failure = AtomscopeError("no broker")
    try:
        answer = tenant.post("/v1/audits", json=inputs)
    finally:
        tenant.deployment.queue.failure = None
    assert answer.status_code == 202
    assert tenant.get(f"/v1/audits/{answer.json()['id']}").json()["status"] == "queued"


@pytest.mark.parametrize("field", ["base_model", "adapter", "dataset"])
@pytest.mark.parametrize("value", ["", "mdl_none", "\x7f", "../../x"])
def test_an_input_that_is_not_there_is_named(
    tenant: Tenant, inputs: dict[str, str], field: str, value: str
) -> None:
    answer = tenant.post("/v1/audits", json=inputs | {field: value})
    assert (answer.status_code, answer.json()["code"], answer.json()["param"]) == (422, "not_found", field)


def test_ids_of_another_kind_are_not_taken(tenant: Tenant, inputs: dict[str, str]) -> None:
    swapped = inputs | {"adapter": inputs["dataset"], "dataset": inputs["adapter"]}
    assert tenant.post("/v1/audits", json=swapped).json()["param"] == "adapter"


@pytest.mark.parametrize("status", ["importing", "failed"])
def test_a_model_that_is_not_ready_is_refused(tenant: Tenant, inputs: dict[str, str], status: str) -> None:
    tenant.change(ModelRow, inputs["base_model"], status=status)
    answer = tenant.post("/v1/audits", json=inputs)
    assert (answer.status_code, answer.json()["code"]) == (422, "model_not_ready")
    assert answer.json()["param"] == "base_model"


def test_audits_are_filtered_by_status(tenant: Tenant) -> None:
    queued, failed = tenant.insert_audit(), tenant.insert_audit(status="failed")
    assert [audit["id"] for audit in tenant.get("/v1/audits").json()["data"]] == [failed, queued]
    assert [audit["id"] for audit in tenant.get("/v1/audits?status=failed").json()["data"]] == [failed]
    assert tenant.get("/v1/audits?status=nope").status_code == 400


def test_progress_and_errors_are_shown(tenant: Tenant) -> None:
    audit_id = tenant.insert_audit(status="running", stage="extract", n_documents=10)
    with tenant.deployment.database.write() as session:
        row = session.get_one(AuditRow, audit_id)
        session.add(
            UnitRow(
                id=new_id("unt"),
                project_id=tenant.project_id,
                created_at=row.created_at,
                audit_id=audit_id,
                attempt=1,
                stage="extract",
                index=0,
                state="leased",
                fence=1,
                sequence=1,
                done=4,
                total=10,
                progress_unit="documents",
            )
        )
    audit = tenant.get(f"/v1/audits/{audit_id}").json()
    assert (audit["stage"], audit["progress"]) == ("extract", {"done": 4, "total": 10, "unit": "documents"})
    fault = {"file": "data.jsonl", "line": 3, "message": "not JSON"}
    tenant.change(
        AuditRow, audit_id, status="failed", error={"code": "bad_row", "detail": "line 3", "errors": [fault]}
    )
    audit = tenant.get(f"/v1/audits/{audit_id}").json()
    assert audit["error"] == {"code": "bad_row", "detail": "line 3", "errors": [fault]}
    assert audit["progress"] is None


# --------------------------------------------------------------- ending an audit


def test_cancel_asks_once_and_repeats_are_no_error(tenant: Tenant) -> None:
    audit_id = tenant.insert_audit(status="running")
    for _ in range(2):
        answer = tenant.post(f"/v1/audits/{audit_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "canceling")
    assert ("cancel_requested", tenant.project_id, audit_id) in tenant.deployment.queue.told
    events = tenant.get(f"/v1/audits/{audit_id}/events").json()["data"]
    assert [event["type"] for event in events] == ["audit.canceling"]


@pytest.mark.parametrize("status", ["succeeded", "failed", "canceled"])
def test_an_ended_audit_cannot_be_canceled(tenant: Tenant, status: str) -> None:
    answer = tenant.post(f"/v1/audits/{tenant.insert_audit(status=status)}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "audit_ended")


@pytest.mark.parametrize("status", ["queued", "running", "canceling"])
def test_a_live_audit_cannot_be_deleted(tenant: Tenant, status: str) -> None:
    audit_id = tenant.insert_audit(status=status)
    answer = tenant.delete(f"/v1/audits/{audit_id}")
    assert (answer.status_code, answer.json()["code"]) == (409, "audit_not_ended")
    assert tenant.get(f"/v1/audits/{audit_id}").status_code == 200


def test_deleting_an_audit_takes_everything_under_it(tenant: Tenant) -> None:
    audit_id = tenant.insert_audit(status="failed")
    with tenant.deployment.database.write() as session:
        append_event(session, session.get_one(AuditRow, audit_id), "audit.failed", {})
    assert tenant.delete(f"/v1/audits/{audit_id}").json() == {"id": audit_id, "deleted": True}
    assert tenant.get(f"/v1/audits/{audit_id}").status_code == 404
    assert tenant.get(f"/v1/audits/{audit_id}/events").status_code == 404
    assert prefixes(tenant) == [f"projects/{tenant.project_id}/audits/{audit_id}/"]
    assert tenant.delete(f"/v1/audits/{audit_id}").status_code == 404


# ------------------------------------------------------------- inputs in use


@pytest.mark.parametrize("field", ["base_model", "adapter", "dataset"])
def test_an_input_is_kept_while_a_live_audit_uses_it(
    tenant: Tenant, inputs: dict[str, str], field: str
) -> None:
    audit_id = tenant.post("/v1/audits", json=inputs).json()["id"]
    url = f"/v1/{'models' if field == 'base_model' else field + 's'}/{inputs[field]}"
    answer = tenant.delete(url)
    assert (answer.status_code, answer.json()["code"]) == (409, "resource_in_use")
    assert audit_id in answer.json()["detail"]
    tenant.change(AuditRow, audit_id, status="succeeded")
    assert tenant.delete(url).json() == {"id": inputs[field], "deleted": True}
    assert tenant.get(url).status_code == 404
    assert prefixes(tenant)[0].startswith(f"projects/{tenant.project_id}/")
    assert prefixes(tenant)[0].endswith(f"/{inputs[field]}/")
    assert tenant.get(f"/v1/audits/{audit_id}").status_code == 200


# ----------------------------------------------------------------- hub imports


@pytest.fixture(scope="module")
def with_hub(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Tenant]:
    made = Deployment(tmp_path_factory.mktemp("hub"), migrated_sqlite, hub_import="true")
    with TestClient(made.app, base_url=BASE_URL) as http:
        yield Tenant(made, http)
    made.database.dispose()


def test_hub_imports_are_off_unless_the_operator_allows_them(tenant: Tenant) -> None:
    answer = tenant.post("/v1/models", json=HUB)
    assert (answer.status_code, answer.json()["code"]) == (403, "hub_import_disabled")


def test_a_hub_import_is_recorded_and_handed_to_control(with_hub: Tenant) -> None:
    answer = with_hub.post("/v1/models", json=HUB)
    assert answer.status_code == 202
    model = answer.json()
    assert (model["status"], model["source"], model["sha256"]) == ("importing", "hub", None)
    assert (model["hub_id"], model["revision"]) == (HUB["hub_id"], HUB["revision"])
    assert ("hub_import_requested", with_hub.project_id, model["id"]) in with_hub.deployment.queue.told


@pytest.mark.parametrize(
    "body",
    [
        {"name": "m"},
        {"name": "m", "hub_id": "a/b"},
        {"name": "m", "revision": "a" * 40},
        {"name": "m", "hub_id": "a/b", "revision": "main"},
        {"name": "m", "hub_id": "a/../b", "revision": "a" * 40},
        {"name": "m", "hub_id": "/etc/passwd", "revision": "a" * 40},
        {"name": "m", "upload_id": "upl_x", "hub_id": "a/b", "revision": "a" * 40},
    ],
)
def test_a_model_comes_from_one_pinned_place(with_hub: Tenant, body: dict[str, Any]) -> None:
    answer = with_hub.post("/v1/models", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


# ------------------------------------------------------------------------ keys


def test_a_key_is_shown_once_and_works_until_it_is_revoked(tenant: Tenant) -> None:
    made = tenant.post("/v1/keys", json={"name": "ci"})
    assert made.headers["Cache-Control"] == "no-store"
    key = made.json()
    headers = {"Authorization": f"Bearer {key['key']}"}
    shown = tenant.get(f"/v1/keys/{key['id']}").json()
    assert (shown["key"], shown["hint"], shown["last_used_at"]) == (None, key["key"][:10], None)
    assert tenant.http.get("/v1/audits", headers=headers).status_code == 200
    assert tenant.get(f"/v1/keys/{key['id']}").json()["last_used_at"] is not None
    assert tenant.delete(f"/v1/keys/{key['id']}").status_code == 200
    assert tenant.http.get("/v1/audits", headers=headers).status_code == 401
    revoked = tenant.get(f"/v1/keys/{key['id']}").json()
    assert revoked["revoked_at"] is not None
    assert tenant.delete(f"/v1/keys/{key['id']}").status_code == 200
    assert tenant.get(f"/v1/keys/{key['id']}").json()["revoked_at"] == revoked["revoked_at"]


def test_the_last_live_key_cannot_be_revoked(tenant: Tenant) -> None:
    (own,) = tenant.get("/v1/keys").json()["data"]
    answer = tenant.delete(f"/v1/keys/{own['id']}")
    assert (answer.status_code, answer.json()["code"]) == (409, "last_key")
    another = tenant.post("/v1/keys", json={"name": "k"}).json()
    assert tenant.delete(f"/v1/keys/{another['id']}").status_code == 200
    assert tenant.delete(f"/v1/keys/{own['id']}").json()["code"] == "last_key"


def test_names_are_given_back_as_they_came(tenant: Tenant) -> None:
    name = "\x1b[31m<b>"
    assert tenant.post("/v1/keys", json={"name": name}).json()["name"] == name
