"""What control does every so often: removing, forgetting, and going on after a fault."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from atomscope.store import LocalStore, StoreError
from atomscope.types.work import REPORT_TASK
from atomscope_service.control import worker
from atomscope_service.control.broker import BrokerUnavailable
from atomscope_service.control.celery import make_app
from atomscope_service.control.deletions import forget_idempotency, remove_deleted
from atomscope_service.control.job_scheduler import JobScheduler
from atomscope_service.control.rounds import Round
from atomscope_service.db.models import DeletionRow, IdempotencyRow
from atomscope_service.ids import new_id
from tests.service.control.site import Site

GRACE = timedelta(seconds=60)


def _put_down(site: Site, prefix: str, age: timedelta = timedelta()) -> None:
    with site.database.write() as session:
        made = datetime.now(UTC) - age
        session.add(DeletionRow(id=new_id("del"), project_id=site.project, created_at=made, prefix=prefix))


def _left(site: Site) -> list[str]:
    with site.database.read() as session:
        return list(session.scalars(select(DeletionRow.prefix).order_by(DeletionRow.id)))


def test_folders_and_single_objects_are_removed_and_neighbours_stay(site: Site) -> None:
    for key in ("p/a/1", "p/a/b/2", "p/ab/3", "p/one", "p/one2"):
        site.store.put_bytes(key, b"x")
    _put_down(site, "p/a/")
    _put_down(site, "p/one")
    _put_down(site, "p/never-was/")
    assert remove_deleted(site.database, site.store, GRACE) == 3
    assert [item.key for item in site.store.list("p/")] == ["p/ab/3", "p/one2"]
    assert _left(site) == []


def test_what_an_attempt_left_is_given_time_and_an_audit_that_was_deleted_is_not(site: Site) -> None:
    audit = f"projects/{site.project}/audits/aud_1/"
    for prefix in (f"{audit}a1/", f"{audit}bundle-a1-f1/", audit):
        _put_down(site, prefix)
    assert remove_deleted(site.database, site.store, GRACE) == 1
    assert _left(site) == [f"{audit}a1/", f"{audit}bundle-a1-f1/"]
    assert remove_deleted(site.database, site.store, timedelta()) == 2


class RefusingStore(LocalStore):
    """Refuses to remove one folder."""

    def delete_prefix(self, prefix: str) -> int:
        if prefix == "stuck/":
            raise StoreError("access denied")
        return super().delete_prefix(prefix)


def test_a_deletion_that_the_store_refuses_holds_up_no_other_and_stays_put_down(
    site: Site, tmp_path: Path
) -> None:
    _put_down(site, "stuck/")
    for number in range(120):  # more than one batch
        _put_down(site, f"p/{number}/")
    assert remove_deleted(site.database, RefusingStore(tmp_path / "store"), GRACE) == 120
    assert _left(site) == ["stuck/"]


def test_answers_to_idempotency_keys_are_forgotten_when_their_time_is_over(site: Site) -> None:
    with site.database.write() as session:
        for key, hours in (("old", 25), ("new", 23)):
            made = datetime.now(UTC) - timedelta(hours=hours)
            session.add(
                IdempotencyRow(
                    id=new_id("idm"),
                    project_id=site.project,
                    created_at=made,
                    key=key,
                    route="POST /v1/audits",
                    body_sha256="0" * 64,
                )
            )
    assert forget_idempotency(site.database, timedelta(hours=24)) == 1
    with site.database.read() as session:
        assert list(session.scalars(select(IdempotencyRow.key))) == ["new"]


def test_a_round_goes_on_after_a_fault_is_woken_and_stops(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[float] = []
    called = threading.Event()

    def work() -> None:
        calls.append(time.monotonic())
        called.set()
        if len(calls) == 1:
            raise ZeroDivisionError("once")

    made = Round("test round", 3600.0, work)
    made.start()
    assert called.wait(5)
    called.clear()
    made.wake()
    assert called.wait(5), "a fault ended the rounds"
    began = time.monotonic()
    made.stop(10)
    assert time.monotonic() - began < 5
    assert len(calls) == 2
    assert "the test round was cut short" in caplog.text


def test_a_message_that_met_a_passing_fault_is_taken_again(
    monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    met: list[object] = []

    def handle(_scheduler: object, message: object) -> bool:
        met.append(message)
        if len(met) < 3:
            raise BrokerUnavailable("it is down")
        return True

    monkeypatch.setattr(worker, "handle_report", handle)
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0.0)
    app = make_app("memory://", 2.0)
    idle = Round("idle", 1.0, lambda: None)
    worker.add_tasks(app, site.scheduler, JobScheduler(site.scheduler), idle, idle)
    app.tasks[REPORT_TASK].apply(args=[{"type": "started"}])
    assert met == [{"type": "started"}] * 3
