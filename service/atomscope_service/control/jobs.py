"""The state machine of jobs, as pure functions: `queued -> running -> succeeded | failed`.

A running job goes back to `queued` under a higher fence when its lease runs out, its worker gives it up or an
attempt fails that may do better the next time, until it was sent too often. Whatever the order, repetition or
loss of messages: its fence only rises, a report of another fence changes nothing, and a job ends once.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from atomscope.text import counted
from atomscope.types.jobs import (
    JOB_MESSAGE_VERSION,
    AnyJobReport,
    JobAbandoned,
    JobFailed,
    JobHeartbeat,
    JobKind,
    JobStarted,
    JobSucceeded,
    result_key,
)
from atomscope.types.resources import JobStatus
from atomscope_service.control import bounds
from atomscope_service.control.steps import MAX_EXCUSED, Delivery, Limits, Rejected

ENDED: frozenset[JobStatus] = frozenset({"succeeded", "failed"})


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as recorded (see `atomscope_service.db.models.JobRow`)."""

    id: str
    project_id: str
    audit_id: str
    kind: JobKind
    request: dict[str, Any]
    status: JobStatus = "queued"
    fence: int = 1
    sequence: int = 0
    worker: str | None = None
    lease_expires_at: datetime | None = None
    done: int = 0
    total: int = 0
    result_key: str | None = None
    error: dict[str, Any] | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def excused(self) -> int:
        """Sends again that were no fault of the job: its worker was stopped."""
        return int((self.error or {}).get("excused", 0))


class JobStep(msgspec.Struct, frozen=True, kw_only=True):
    """The record as it shall be, and whether its order must be sent."""

    job: Job
    send: bool = False


def on_job_report(job: Job, report: AnyJobReport, now: datetime, limits: Limits) -> JobStep | Rejected:
    """What a worker's report changes, if it is one of the live fence and sequence."""
    reason = _refusal(job, report)
    if reason is not None:
        return Rejected(reason)
    job = msgspec.structs.replace(
        job, sequence=report.sequence, worker=bounds.text(report.worker, bounds.NAME)
    )
    match report:
        case JobStarted():
            return JobStep(job=_taken(job, now, limits))
        case JobHeartbeat():
            done, total = bounds.pair(report.done, report.total)
            return JobStep(job=msgspec.structs.replace(_taken(job, now, limits), done=done, total=total))
        case JobSucceeded():
            key = result_key(job.project_id, job.audit_id, job.id, job.fence)
            return JobStep(job=_ended(job, now, "succeeded", result_key=key, error=None))
        case JobFailed():
            error = bounds.failure(report.code, report.detail, report.errors)
            if not report.retryable:
                return JobStep(job=_ended(job, now, "failed", error=error))
        case JobAbandoned():
            error = {"code": "worker_stopped", "detail": "the worker was stopped", "errors": []}
    return _again(job, error, now, limits, excuse=isinstance(report, JobAbandoned))


def on_job_expiry(job: Job, delivery: Delivery, now: datetime, limits: Limits) -> JobStep | None:
    """What the passing of a job's deadline changes; None when it has not passed or the job has ended.

    `delivery` says where a queued job's message is, as for units.
    """
    if job.status in ENDED or (job.lease_expires_at is not None and job.lease_expires_at > now):
        return None
    if job.status == "running":
        error = {"code": "lease_expired", "detail": "the worker's lease expired", "errors": []}
        return _again(job, error, now, limits)
    if delivery == "taken":
        return JobStep(job=_taken(job, now, limits))
    waiting = msgspec.structs.replace(job, lease_expires_at=now + limits.queued)
    return JobStep(job=waiting, send=delivery == "lost")


def fail_job(job: Job, code: str, detail: str, now: datetime) -> JobStep | None:
    """End a job that control itself finds impossible; None if it has ended."""
    if job.status in ENDED:
        return None
    error: dict[str, Any] = {"code": code, "detail": detail, "errors": []}
    return JobStep(job=_ended(job, now, "failed", error=error))


def _refusal(job: Job, report: AnyJobReport) -> str | None:
    checks: tuple[tuple[bool, str], ...] = (
        (report.v == JOB_MESSAGE_VERSION, f"message version {report.v} is not {JOB_MESSAGE_VERSION}"),
        (report.project_id == job.project_id and report.job_id == job.id, "it names another job"),
        (job.status not in ENDED, f"the job has {job.status}"),
        (report.fence == job.fence, f"fence {report.fence} is not the live one ({job.fence})"),
        (report.sequence > job.sequence, f"sequence {report.sequence} is not above {job.sequence}"),
    )
    return next((reason for holds, reason in checks if not holds), None)


def _taken(job: Job, now: datetime, limits: Limits) -> Job:
    return msgspec.structs.replace(
        job, status="running", lease_expires_at=now + limits.lease, started_at=job.started_at or now
    )


def _ended(job: Job, now: datetime, status: JobStatus, **facts: Any) -> Job:  # noqa: ANN401
    return msgspec.structs.replace(
        job, status=status, lease_expires_at=None, started_at=job.started_at or now, ended_at=now, **facts
    )


def _again(
    job: Job, error: dict[str, Any], now: datetime, limits: Limits, *, excuse: bool = False
) -> JobStep:
    """Send a job again under a higher fence, or fail it on the last attempt.

    An excused attempt counts for nothing, up to `MAX_EXCUSED` of them.
    """
    excused = job.excused + excuse
    if job.fence - min(excused, MAX_EXCUSED) >= limits.max_attempts:
        detail = f"it failed {counted(limits.max_attempts, 'time')}, the last time: {error['detail']}"
        exhausted = {"code": "job_attempts_exhausted", "detail": detail, "errors": error["errors"]}
        return JobStep(job=_ended(job, now, "failed", error=exhausted))
    queued = msgspec.structs.replace(
        job,
        status="queued",
        fence=job.fence + 1,
        sequence=0,
        worker=None,
        lease_expires_at=now + limits.queued,
        done=0,
        error=error | {"excused": excused},
    )
    return JobStep(job=queued, send=True)
