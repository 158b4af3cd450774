"""Gradients go before the rest of an audit does: by time or when told, counted, and everybody is told so."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from atomscope.bundle import layout, write_manifest
from atomscope.types.bundle import FileEntry
from atomscope_service.control.expiry import expire_gradients
from atomscope_service.db import extractions
from atomscope_service.db.engine import Database
from atomscope_service.db.gradients import expires_at, gradients_of
from atomscope_service.db.migrate import upgrade
from atomscope_service.db.models import AuditRow, DeletionRow, JobRow, Project
from atomscope_service.ids import new_id
from tests.service.bundles import succeeded_audit
from tests.service.deployment import Tenant

NOW = datetime.now(UTC)
BASE, ADAPTER = "b" * 64, "a" * 64


def uses(tenant: Tenant, audit_id: str) -> None:
    """Let the audit use its own extraction and those of the tenant's others."""
    with tenant.deployment.database.write() as session:
        row = session.get(AuditRow, audit_id)
        assert row is not None
        extractions.claim(session, row, BASE, ADAPTER)


def removed(database: Database, project_id: str) -> set[str]:
    with database.read() as session:
        rows = session.scalars(select(DeletionRow.prefix).where(DeletionRow.project_id == project_id))
        return {prefix.split("/")[3] for prefix in rows}


@pytest.fixture
def audit(tenant: Tenant) -> str:
    """An audit that has succeeded and uses its own extraction."""
    made = succeeded_audit(tenant)
    tenant.change(AuditRow, made, ended_at=NOW)
    uses(tenant, made)
    return made


# ------------------------------------------------------------------ when told


def test_deleting_gradients_frees_the_extraction_and_leaves_the_findings(tenant: Tenant, audit: str) -> None:
    path = f"/v1/audits/{audit}"
    assert tenant.get(path).json()["gradients"] == "kept"
    for _ in range(2):  # twice is no error
        answer = tenant.delete(f"{path}/gradients")
        assert (answer.status_code, answer.json()["gradients"]) == (200, "expired")
    assert tenant.get(path).json()["gradients"] == "expired"
    assert tenant.get(f"{path}/report").status_code == 200
    assert tenant.get(f"{path}/atoms").json()["data"]
    assert removed(tenant.deployment.database, tenant.project_id) == {audit}


def test_what_another_audit_uses_stays(tenant: Tenant, audit: str) -> None:
    second = tenant.insert_audit(status="succeeded", ended_at=NOW)
    uses(tenant, second)
    tenant.delete(f"/v1/audits/{audit}/gradients")
    assert removed(tenant.deployment.database, tenant.project_id) == set()
    tenant.delete(f"/v1/audits/{second}/gradients")
    assert removed(tenant.deployment.database, tenant.project_id) == {audit, second}


@pytest.mark.parametrize(("kept", "code"), [("expired", "gradients_expired"), ("none", "gradients_not_kept")])
def test_what_needs_gradients_is_refused_by_reason(tenant: Tenant, audit: str, kept: str, code: str) -> None:
    if kept == "none":
        tenant.change(AuditRow, audit, config={"gradients": "none"})
    else:
        tenant.delete(f"/v1/audits/{audit}/gradients")
    query = {"prompt": "a", "completion": "b"}
    refit = tenant.post(f"/v1/audits/{audit}/refits", json={})
    exact = tenant.post(f"/v1/audits/{audit}/attributions", json=query | {"exact": True})
    for answer in (refit, exact):
        assert (answer.status_code, answer.json()["code"]) == (409, code)
    assert tenant.post(f"/v1/audits/{audit}/attributions", json=query).status_code == 202
    assert tenant.get(f"/v1/audits/{audit}").json()["gradients"] == kept


def test_of_a_sketch_there_are_refits_with_its_own_whitening_and_nothing_exact(
    tenant: Tenant, audit: str
) -> None:
    tenant.change(AuditRow, audit, config={"gradients": "sketch"})
    path = f"/v1/audits/{audit}"
    assert tenant.get(path).json()["gradients"] == "sketch"
    exact = tenant.post(f"{path}/attributions", json={"prompt": "a", "completion": "b", "exact": True})
    assert (exact.status_code, exact.json()["code"]) == (409, "gradients_not_kept")
    assert "`gradients: sketch`" in exact.json()["detail"]
    missing = tenant.post(f"{path}/refits", json={})  # the files are those of an old bundle
    assert (missing.status_code, missing.json()["code"]) == (409, "old_bundle")
    assert tenant.delete(f"{path}/gradients").json()["gradients"] == "sketch"


def test_gradients_that_are_in_use_or_not_there_yet_are_not_deleted(tenant: Tenant, audit: str) -> None:
    asked = tenant.post(
        f"/v1/audits/{audit}/attributions", json={"prompt": "a", "completion": "b", "exact": True}
    ).json()
    answer = tenant.delete(f"/v1/audits/{audit}/gradients")
    assert (answer.status_code, answer.json()["code"]) == (409, "resource_in_use")
    tenant.change(JobRow, asked["id"], status="succeeded", ended_at=NOW)
    assert tenant.delete(f"/v1/audits/{audit}/gradients").status_code == 200
    running = tenant.insert_audit(status="running")
    assert tenant.get(f"/v1/audits/{running}").json()["gradients"] is None
    answer = tenant.delete(f"/v1/audits/{running}/gradients")
    assert (answer.status_code, answer.json()["code"]) == (409, "audit_not_ended")


def test_the_listing_of_a_bundle_leaves_out_what_has_expired(tenant: Tenant) -> None:
    made, store = tenant.insert_audit(status="succeeded"), tenant.deployment.store
    prefix = layout.bundle_prefix(tenant.project_id, made, 1, 1)
    key = f"{layout.extraction_prefix(tenant.project_id, made)}shard/f1/gradients.safetensors"
    files = {layout.PLAN: b"{}", layout.gradient_shard(0): b"gradients"}
    store.put_bytes(f"{prefix}{layout.PLAN}", b"{}")
    store.put_bytes(key, b"gradients")
    entries = [
        FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in files.items()
    ]
    write_manifest(store, prefix, made, entries, shared={layout.gradient_shard(0): key})
    tenant.change(AuditRow, made, bundle_prefix=prefix)

    def listed() -> set[str]:
        return {file["path"] for file in tenant.get(f"/v1/audits/{made}/bundle").json()["files"]}

    assert listed() == {layout.MANIFEST, *files}
    store.delete(key)
    assert listed() == {layout.MANIFEST, layout.PLAN}


# -------------------------------------------------------------------- by time


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    sqlite = f"sqlite:///{tmp_path / 'expiry.db'}"
    made = Database(sqlite if request.param == "sqlite" else request.getfixturevalue("postgres_url"))
    upgrade(made.engine)
    with made.write() as session:
        session.add(Project(id="prj_1", name="one", created_at=NOW))
    yield made
    made.dispose()


def ended(database: Database, days: float | None, status: str = "succeeded", **config: Any) -> str:
    """An audit that ended so many days ago, or has not, with an extraction of its own."""
    at = None if days is None else NOW - timedelta(days=days)
    row = AuditRow(
        id=new_id("aud"), project_id="prj_1", created_at=NOW, status=status, attempt=1,
        base_model_id="mdl_1", adapter_id="ada_1", dataset_id="ds_1", config=config, metadata_={},
        warnings=[], event_sequence=0, ended_at=at,
    )  # fmt: skip
    with database.write() as session:
        session.add(row)
        session.flush()
        extractions.claim(session, row, f"base of {row.id}"[:64], ADAPTER)
    return row.id


def test_audits_let_go_once_their_time_is_over_unless_they_are_asked_something(database: Database) -> None:
    old, failed = ended(database, 31), ended(database, 31, "failed")
    young, live = ended(database, 29), ended(database, None, "running")
    ended(database, 31, gradients="none")
    ended(database, 31, gradients="sketch")
    assert expire_gradients(database, 0) == 0
    assert removed(database, "prj_1") == set()
    assert expire_gradients(database, 30) == 2
    assert removed(database, "prj_1") == {old, failed}
    assert expire_gradients(database, 30) == 0
    with database.read() as session:
        rows = {row.id: row for row in session.scalars(select(AuditRow))}
        assert [gradients_of(rows[name]) for name in (old, young, live)] == ["expired", "kept", None]
        at = expires_at(rows[young], 30)
        assert at is not None
        assert abs(at - (NOW + timedelta(days=1))) < timedelta(seconds=1)
        assert [expires_at(rows[old], 30), expires_at(rows[live], 30), expires_at(rows[young], 0)] == [
            None
        ] * 3


def _check_that_one_that_is_asked_something_waits(database: Database) -> None:
    old = ended(database, 31)
    job = JobRow(
        id=new_id("atr"), project_id="prj_1", created_at=NOW, audit_id=old, kind="attribution",
        status="running", request={}, fence=1, sequence=0, done=0, total=0,
    )  # fmt: skip
    with database.write() as session:
        session.add(job)
    assert expire_gradients(database, 30) == 0
    with database.write() as session:
        row = session.get(JobRow, job.id)
        assert row is not None
        row.ended_at = NOW
    assert expire_gradients(database, 30) == 1
