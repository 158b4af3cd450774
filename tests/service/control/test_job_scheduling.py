"""Jobs over a real database, store and broker: what is recorded, what is sent, and what is healed."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import msgspec
import pytest
from sqlalchemy import delete, select

from atomscope.types.attribution import AttributionResult
from atomscope.types.jobs import (
    JobFailed,
    JobHeartbeat,
    JobKind,
    JobOrder,
    JobReport,
    JobStarted,
    JobSucceeded,
    job_prefix,
    result_key,
)
from atomscope.types.work import PIPELINE_QUEUE, claim_key, live_fence_key
from atomscope_service.control.broker import BrokerUnavailable
from atomscope_service.control.deletions import remove_deleted
from atomscope_service.control.job_scheduler import JobScheduler
from atomscope_service.control.jobs import Job
from atomscope_service.db.models import AuditRow, JobRow
from atomscope_service.db.repositories import Repositories
from atomscope_service.ids import JOB_PREFIXES, new_id
from atomscope_service.job_results import MAX_RESULT_BYTES
from tests.service.control.site import Site, message_of
from tests.service.control.test_jobs import FAILED, report_of

RESULT = AttributionResult(
    form="chat",
    n_tokens=3,
    n_target_tokens=1,
    loss=1.0,
    base_loss=2.0,
    gradient_norm=0.5,
    explained=0.25,
    exact=False,
    atoms=[],
    behaviours=[],
    documents=[],
)


class Jobs:
    """Jobs of a site, and a worker's part in them."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.scheduler = JobScheduler(site.scheduler)
        self.audit = site.submit()
        self._set(AuditRow, self.audit, status="succeeded", bundle_prefix="projects/p/audits/a/bundle-a1-f1/")

    def _set(self, table: type[Any], row_id: str, **columns: Any) -> None:
        with self.site.database.write() as session:
            row = session.get_one(table, row_id)
            for name, value in columns.items():
                setattr(row, name, value)

    def make(self, kind: JobKind = "attribution") -> str:
        """A job's row as the API makes it, without telling control; its id."""
        now = datetime.now(UTC)
        row = JobRow(
            id=new_id(JOB_PREFIXES[kind]),
            project_id=self.site.project,
            created_at=now,
            audit_id=self.audit,
            kind=kind,
            status="queued",
            request={"prompt": "a", "completion": "b"},
            fence=1,
            sequence=0,
            lease_expires_at=now + timedelta(seconds=0.05),
            done=0,
            total=0,
        )
        with self.site.database.write() as session:
            session.add(row)
        return row.id

    def started(self, kind: JobKind = "attribution") -> JobOrder:
        job_id = self.make(kind)
        self.scheduler.start(self.site.project, job_id)
        order = self.take()
        assert order is not None
        assert self.report(order, JobStarted, 1)
        return order

    def row(self, job_id: str) -> JobRow:
        with self.site.database.read() as session:
            return session.scalars(select(JobRow).where(JobRow.id == job_id)).one()

    def take(self, *, claim: bool = True) -> JobOrder | None:
        message = message_of(self.site.valkey, PIPELINE_QUEUE)
        if message is None:
            return None
        order = msgspec.convert(message[1]["order"], JobOrder)
        if claim:
            self.site.valkey.client.set(claim_key(order.job_id, order.fence), "test", nx=True, ex=100)
        return order

    def report(self, order: JobOrder, kind: type[JobReport], sequence: int, **facts: Any) -> bool:
        return self.scheduler.report(msgspec.to_builtins(report_of(order, kind, sequence, **facts)))

    def succeed(self, order: JobOrder, content: bytes | None = None, sequence: int = 2) -> bool:
        self.site.store.put_bytes(
            order.result_key, msgspec.json.encode(RESULT) if content is None else content
        )
        return self.report(order, JobSucceeded, sequence)

    def expire(self, job_id: str) -> None:
        """Let the deadline of a job have passed."""
        self._set(JobRow, job_id, lease_expires_at=datetime.now(UTC) - timedelta(seconds=1))


@pytest.fixture
def at(site: Site) -> Jobs:
    return Jobs(site)


def test_an_order_follows_its_live_fence_and_names_bundle_and_result(any_site: Site) -> None:
    at = Jobs(any_site)
    job_id = at.make()
    at.scheduler.start(any_site.project, job_id)
    assert any_site.valkey.client.get(live_fence_key(job_id)) == "1"
    order = at.take()
    assert order is not None
    assert (order.job_id, order.fence, order.kind) == (job_id, 1, "attribution")
    assert order.bundle_prefix == "projects/p/audits/a/bundle-a1-f1/"
    assert order.request == {"prompt": "a", "completion": "b"}
    assert order.result_key == result_key(any_site.project, at.audit, job_id, 1)
    assert at.report(order, JobStarted, 1)
    assert at.report(order, JobHeartbeat, 2, done=1, total=4)
    row = at.row(job_id)
    assert (row.status, row.done, row.total, row.worker) == ("running", 1, 4, "w")
    assert at.succeed(order, sequence=3)
    row = at.row(job_id)
    assert (row.status, row.result_key, row.error) == ("succeeded", order.result_key, None)
    assert row.ended_at is not None
    assert any_site.valkey.client.get(live_fence_key(job_id)) != "1", "whoever is still at it stops"
    assert not at.succeed(order, sequence=4)


def test_a_project_cannot_start_or_report_anothers_job(at: Jobs) -> None:
    job_id = at.make()
    at.scheduler.start("prj_other", job_id)
    assert at.take() is None
    at.scheduler.start(at.site.project, job_id)
    order = at.take()
    assert order is not None
    assert not at.report(order, JobStarted, 1, project_id="prj_other")
    assert at.row(job_id).status == "queued"


def test_a_lost_order_is_sent_again_by_the_sweep_and_a_waiting_one_is_left(at: Jobs) -> None:
    job_id = at.make()  # nobody told control of it
    time.sleep(0.06)
    assert at.scheduler.sweep() == 1
    assert at.site.orders_waiting() == 1
    at.expire(job_id)
    assert at.scheduler.sweep() == 1
    assert at.site.orders_waiting() == 1, "it waits: none is sent beside it"
    at.take(claim=False)
    at.expire(job_id)
    at.scheduler.sweep()
    order = at.take()
    assert order is not None
    assert (order.job_id, order.fence) == (job_id, 1)
    at.expire(job_id)
    at.scheduler.sweep()
    assert at.row(job_id).status == "running", "a worker has claimed it"
    assert at.take() is None


def test_a_lease_that_ran_out_is_sent_again_and_a_late_result_refused(at: Jobs) -> None:
    slow = at.started()
    at.expire(slow.job_id)
    assert at.scheduler.sweep() == 1
    assert at.site.valkey.client.get(live_fence_key(slow.job_id)) == "2"
    assert not at.succeed(slow)
    fast = at.take()
    assert fast is not None
    assert (fast.job_id, fast.fence) == (slow.job_id, 2)
    assert fast.result_key != slow.result_key
    assert at.succeed(fast, sequence=1)
    assert at.row(fast.job_id).result_key == fast.result_key


def test_attempts_are_exhausted(at: Jobs) -> None:
    order = at.started()
    for _ in range(at.site.scheduler.limits.max_attempts - 1):
        assert at.report(order, JobFailed, 5, **FAILED)
        following = at.take()
        assert following is not None
        order = following
    assert at.report(order, JobFailed, 5, **FAILED)
    assert at.take() is None
    row = at.row(order.job_id)
    assert row.status == "failed"
    assert row.error is not None
    assert row.error["code"] == "job_attempts_exhausted"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "not in the store"),
        (b"{", "cannot be read"),
        (b'{"form": "chat"}', "cannot be read"),
        (msgspec.json.encode(RESULT).replace(b"1.0", b"null"), "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b" " * (MAX_RESULT_BYTES + 1), "more than"),
    ],
    ids=["missing", "no JSON", "fields missing", "not a number", "deep", "too large"],
)
def test_a_result_of_no_use_is_a_failed_attempt(at: Jobs, content: bytes | None, told: str) -> None:
    order = at.started()
    if content is None:
        assert at.report(order, JobSucceeded, 2)
    else:
        assert at.succeed(order, content)
    row = at.row(order.job_id)
    assert (row.status, row.fence) == ("queued", 2)
    assert row.error is not None
    assert row.error["code"] == "bad_result"
    assert told in row.error["detail"]


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        "text",
        {},
        {"type": "started"},
        {"type": "exploded", "job_id": "atr_1"},
        {"x": "y" * 300_000},
    ],
)
def test_a_message_that_is_no_report_is_refused(at: Jobs, message: object) -> None:
    assert not at.scheduler.report(message)


@pytest.mark.parametrize("kind", get_args(JobKind))
def test_a_job_deleted_while_it_runs_stops_its_worker_and_leaves_nothing(at: Jobs, kind: JobKind) -> None:
    order, site = at.started(kind), at.site
    assert order.kind == kind
    with site.database.write() as session:
        rows = Repositories(session, site.project)
        rows.deletions.add_prefix(job_prefix(site.project, at.audit, order.job_id))
        session.execute(delete(JobRow).where(JobRow.id == order.job_id))
    assert remove_deleted(site.database, site.store, timedelta(minutes=1)) == 0, "it may still write"
    assert not at.report(order, JobHeartbeat, 2)
    assert site.valkey.client.get(live_fence_key(order.job_id)) != "1"
    assert not at.succeed(order, sequence=3)
    assert site.store.exists(order.result_key)
    assert remove_deleted(site.database, site.store, timedelta(0)) == 1
    assert not site.store.exists(order.result_key)
    assert at.scheduler.sweep() == 0


def test_a_report_of_a_job_that_never_was_stops_no_unit(at: Jobs) -> None:
    order = at.started()
    at.site.valkey.client.set(live_fence_key("unt_1"), 1)
    assert not at.report(order, JobHeartbeat, 2, job_id="unt_1")
    assert at.site.valkey.client.get(live_fence_key("unt_1")) == "1"


def test_jobs_go_with_their_audit(at: Jobs) -> None:
    order = at.started()
    with at.site.database.write() as session:
        session.execute(delete(AuditRow).where(AuditRow.id == at.audit))
    with at.site.database.read() as session:
        assert session.get(JobRow, order.job_id) is None


def test_a_job_whose_audit_has_no_bundle_fails(at: Jobs) -> None:
    job_id = at.make()
    with at.site.database.write() as session:
        session.get_one(AuditRow, at.audit).bundle_prefix = None
    at.scheduler.start(at.site.project, job_id)
    row = at.row(job_id)
    assert row.status == "failed"
    assert row.error is not None
    assert row.error["code"] == "bundle_missing"


def test_a_broker_that_is_down_loses_no_job(at: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = at.make()

    def down(order: JobOrder) -> None:
        raise BrokerUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(at.site.broker, "send_job", down)
        at.scheduler.start(at.site.project, job_id)
    assert at.take() is None
    at.expire(job_id)
    at.scheduler.sweep()
    order = at.take()
    assert order is not None
    assert order.job_id == job_id


def test_what_is_wrong_with_one_job_does_not_hold_up_the_others(
    at: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = at.make(), at.make()
    at.expire(first)
    time.sleep(0.06)
    change = at.scheduler.change

    def failing(project_id: str, job_id: str, decide: Any) -> Job | None:
        if job_id == first:
            raise RuntimeError("an odd row")
        return change(project_id, job_id, decide)

    monkeypatch.setattr(at.scheduler, "change", failing)
    assert at.scheduler.sweep() == 1
    order = at.take()
    assert order is not None
    assert order.job_id == second
