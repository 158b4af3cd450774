"""Applies what happens to jobs: one transaction for the record, then the message that follows from it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from atomscope.types.jobs import AnyJobReport, JobFailed, JobKind, JobOrder, JobSucceeded, result_key
from atomscope.types.resources import JobStatus
from atomscope_service.control.broker import BrokerUnavailable
from atomscope_service.control.jobs import ENDED, Job, JobStep, fail_job, on_job_expiry, on_job_report
from atomscope_service.control.overdue import Deliveries, apart
from atomscope_service.control.reports import within_bounds
from atomscope_service.control.scheduler import Scheduler
from atomscope_service.control.steps import Delivery, Rejected
from atomscope_service.db.models import AuditRow, JobRow
from atomscope_service.ids import JOB_PREFIXES, is_id
from atomscope_service.job_results import BadResult, read_result

logger = logging.getLogger(__name__)

BATCH = 500
"""Jobs looked after in one sweep; the others wait for the next one."""

_CHANGING: Sequence[str] = (
    "status",
    "fence",
    "sequence",
    "worker",
    "lease_expires_at",
    "done",
    "total",
    "result_key",
    "error",
    "started_at",
    "ended_at",
)
"""Fields that a step may change."""

Decide = Callable[[Job], JobStep | None]


class JobScheduler:
    """Everything that changes the record of a job after it was made goes through `change`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def start(self, project_id: str, job_id: str) -> None:
        """Send the order of a job that was just made; a second order of one fence is not run."""
        with self._scheduler.database.read() as session:
            row = _row(session, project_id, job_id)
            job = None if row is None or row.status != "queued" else job_of(row)
        if job is not None:
            self._send(job)

    def report(self, message: Any) -> bool:  # noqa: ANN401
        """Apply one report; False when it was refused.

        Raises what the database and the store raise when they are down: the message is then taken again.
        """
        decoded = within_bounds(message, AnyJobReport)
        if isinstance(decoded, str):
            logger.warning("a report of a job was refused: %s", decoded)
            return False
        report = self._with_its_result(cast(AnyJobReport, decoded))
        refused: list[str] = []

        def decide(job: Job) -> JobStep | None:
            outcome = on_job_report(job, report, datetime.now(UTC), self._scheduler.limits)
            if isinstance(outcome, Rejected):
                refused.append(outcome.reason)
                return None
            return outcome

        if self.change(report.project_id, report.job_id, decide) is not None:
            return True
        if not refused and any(is_id(report.job_id, prefix) for prefix in JOB_PREFIXES.values()):
            self._retire(report.job_id)  # deleted while it ran: whoever is at it may stop
        reason = refused[0] if refused else "no such job"
        logger.info("a report was refused: %s of %s: %s", type(report).__name__, report.job_id, reason)
        return False

    def sweep(self) -> int:
        """Look after the jobs whose deadline has passed; how many changed.

        Raises `BrokerUnavailable` when an overdue job's message cannot be looked for.
        """
        now = datetime.now(UTC)
        with self._scheduler.database.read() as session:
            rows = session.scalars(
                select(JobRow)
                .where(JobRow.status.not_in(sorted(ENDED)), JobRow.lease_expires_at <= now)
                .order_by(JobRow.lease_expires_at)
                .limit(BATCH)
            )
            overdue = [job_of(row) for row in rows]
        changed = 0
        deliveries = Deliveries(self._scheduler.broker)
        for job in overdue:
            delivery = deliveries.of(job.id, job.fence) if job.status == "queued" else "lost"
            with apart(job.id):
                changed += self._expire(job, delivery)
        return changed

    def change(self, project_id: str, job_id: str, decide: Decide) -> Job | None:
        """Lock the job, decide, write, commit; then send what follows. None when nothing changed."""
        with self._scheduler.database.write() as session:
            row = _row(session, project_id, job_id, lock=True)
            step = None if row is None else decide(job_of(row))
            if row is None or step is None:
                return None
            for field in _CHANGING:
                setattr(row, field, getattr(step.job, field))
        if step.job.status in ENDED:
            self._retire(step.job.id)
        if step.send:
            self._send(step.job)
        return step.job

    def _expire(self, seen: Job, delivery: Delivery) -> bool:
        def decide(job: Job) -> JobStep | None:
            if job.fence != seen.fence:
                return None  # another control worker was faster
            return on_job_expiry(job, delivery, datetime.now(UTC), self._scheduler.limits)

        changed = self.change(seen.project_id, seen.id, decide)
        if changed is not None:
            logger.info("job %s is %s, fence %d", changed.id, changed.status, changed.fence)
        return changed is not None

    def _with_its_result(self, report: AnyJobReport) -> AnyJobReport:
        """A job that succeeded has left a result of its kind; one that has not, failed.

        The store is read before the record is locked, and not at all for a report that will be refused.
        """
        if not isinstance(report, JobSucceeded):
            return report
        with self._scheduler.database.read() as session:
            row = _row(session, report.project_id, report.job_id)
            job = None if row is None else job_of(row)
        if job is None or isinstance(
            on_job_report(job, report, datetime.now(UTC), self._scheduler.limits), Rejected
        ):
            return report
        key = result_key(job.project_id, job.audit_id, job.id, job.fence)
        try:
            read_result(self._scheduler.store, key, job.kind)
        except BadResult as error:
            fault = str(error)
        else:
            return report
        return JobFailed(
            project_id=report.project_id,
            job_id=report.job_id,
            fence=report.fence,
            sequence=report.sequence,
            worker=report.worker,
            v=report.v,
            code="bad_result",
            detail=f"the worker reported {fault}",
            retryable=True,
        )

    def _retire(self, job_id: str) -> None:
        try:
            self._scheduler.broker.retire([job_id])
        except BrokerUnavailable as error:
            logger.warning("job %s: its worker could not be told of its end: %s", job_id, error)

    def _send(self, job: Job) -> None:
        with self._scheduler.database.read() as session:
            prefix = session.scalar(select(AuditRow.bundle_prefix).where(AuditRow.id == job.audit_id))
        if prefix is None:
            missing = "the audit has no bundle"
            self.change(
                job.project_id,
                job.id,
                lambda current: fail_job(current, "bundle_missing", missing, datetime.now(UTC)),
            )
            return
        order = JobOrder(
            project_id=job.project_id,
            audit_id=job.audit_id,
            job_id=job.id,
            kind=job.kind,
            fence=job.fence,
            bundle_prefix=prefix,
            result_key=result_key(job.project_id, job.audit_id, job.id, job.fence),
            request=job.request,
            heartbeat_seconds=self._scheduler.heartbeat_seconds,
        )
        try:
            self._scheduler.broker.send_job(order)
        except BrokerUnavailable as error:
            logger.warning("job %s: its order is left to the sweeper: %s", job.id, error)


def job_of(row: JobRow) -> Job:
    """A row as the state machine sees it."""
    return Job(
        id=row.id,
        project_id=row.project_id,
        audit_id=row.audit_id,
        kind=cast(JobKind, row.kind),
        request=row.request,
        status=cast(JobStatus, row.status),
        fence=row.fence,
        sequence=row.sequence,
        worker=row.worker,
        lease_expires_at=row.lease_expires_at,
        done=row.done,
        total=row.total,
        result_key=row.result_key,
        error=row.error,
        started_at=row.started_at,
        ended_at=row.ended_at,
    )


def _row(session: Session, project_id: str, job_id: str, *, lock: bool = False) -> JobRow | None:
    query = select(JobRow).where(JobRow.id == job_id, JobRow.project_id == project_id)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()
