"""The messages about *jobs*: work that is asked of a finished audit, such as the attribution of a query.

A job is one task of one worker, held by a lease and a fence as a unit of an audit is (see
`atomscope.types.work`). It reads the audit's bundle, which never changes, and writes one result.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

JOB_MESSAGE_VERSION = 1

RUN_JOB_TASK = "atomscope.pipeline.run_job"
JOB_REPORT_TASK = "atomscope.control.job_report"

JobKind = Literal["attribution", "evaluation"]


class JobOrder(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Control to worker: do this job."""

    project_id: str
    audit_id: str
    job_id: str
    kind: JobKind
    fence: int
    bundle_prefix: str
    """Key prefix of the audit's bundle."""
    result_key: str
    """Where the result goes, as JSON, before success is reported."""
    request: dict[str, Any]
    """Of an attribution, an `AttributionQuery`; of an evaluation, an `EvaluationQuery`."""
    heartbeat_seconds: float
    v: int = JOB_MESSAGE_VERSION


class JobReport(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of what a worker tells control. `sequence` rises by one with each report of a fence."""

    project_id: str
    job_id: str
    fence: int
    sequence: int
    worker: str
    v: int = JOB_MESSAGE_VERSION


class JobStarted(JobReport, frozen=True, tag="started"):
    """The job was taken; its lease starts."""


class JobHeartbeat(JobReport, frozen=True, tag="heartbeat"):
    """The job is alive; its lease is renewed."""

    done: int = 0
    total: int = 0
    unit: str = "steps"


class JobSucceeded(JobReport, frozen=True, tag="succeeded"):
    """The result is in the store, under the order's `result_key`."""


class JobFailed(JobReport, frozen=True, tag="failed"):
    """The job cannot be done. `retryable` failures are sent again under a higher fence, to a limit."""

    code: str
    detail: str
    retryable: bool
    errors: list[dict[str, Any]] = []
    """Details of bad input: `file`, `line`, `field`, `message`."""


class JobAbandoned(JobReport, frozen=True, tag="abandoned"):
    """The worker stopped: it is shutting down, or the fence is no longer live."""


AnyJobReport = JobStarted | JobHeartbeat | JobSucceeded | JobFailed | JobAbandoned


def result_key(project_id: str, audit_id: str, job_id: str, fence: int) -> str:
    """Key of a job's result under a fence; it goes with the audit."""
    return f"projects/{project_id}/audits/{audit_id}/jobs/{job_id}/f{fence}.json"


def job_prefix(project_id: str, audit_id: str, job_id: str) -> str:
    """Key prefix of every result of a job."""
    return f"projects/{project_id}/audits/{audit_id}/jobs/{job_id}/"
