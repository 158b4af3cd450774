"""What the routes of every kind of job share: queueing one, finding it, showing it, and deleting it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec

from atomscope.store import ObjectStore
from atomscope.types.jobs import JobKind, job_prefix
from atomscope.types.resources import AuditError, Deleted, Page, Progress
from atomscope_service.api.announce import announce
from atomscope_service.api.paging import list_rows
from atomscope_service.api.problems import ProblemError, not_found
from atomscope_service.api.services import Tenant, found
from atomscope_service.api.times import rfc3339, rfc3339_or_none
from atomscope_service.db.models import AuditRow, JobRow
from atomscope_service.db.repositories import Repositories
from atomscope_service.ids import JOB_PREFIXES, new_id
from atomscope_service.job_results import BadResult, read_result
from atomscope_service.settings import queued_seconds

T = TypeVar("T")

MOST_LIVE: dict[JobKind, int] = {"attribution": 100, "evaluation": 20}
"""Jobs of a kind and a project that may wait or run at once."""
_RETRY_SECONDS: dict[JobKind, int] = {"attribution": 5, "evaluation": 30}
"""When to ask again: about how soon one of them may end."""
_UNITS: dict[str, str] = {"attribution": "steps", "evaluation": "passes"}
"""What a job's progress counts, by its kind."""


def queue_job(
    tenant: Tenant,
    audit_id: str,
    kind: JobKind,
    request: msgspec.Struct,
    check: Callable[[AuditRow], None] | None = None,
) -> JobRow:
    """Queue a job; raises 404, 409 unless the audit has succeeded, and 429 when too many wait.

    `check` may refuse the audit, which is locked, by an error of its own.
    """
    now = datetime.now(UTC)
    with tenant.write() as repositories:
        audit = found(repositories.audits, audit_id, "audit", lock=True)
        if audit.status != "succeeded":
            raise ProblemError(409, "audit_not_succeeded", f"This audit is {audit.status}, not succeeded.")
        if check is not None:
            check(audit)
        if repositories.jobs.live(kind) >= MOST_LIVE[kind]:
            detail = f"{MOST_LIVE[kind]} {kind}s of this project wait or run: wait for one to end."
            headers = {"Retry-After": str(_RETRY_SECONDS[kind])}
            raise ProblemError(429, f"too_many_{kind}s", detail, headers=headers)
        row = repositories.jobs.add(
            JobRow(
                id=new_id(JOB_PREFIXES[kind]),
                project_id=tenant.project_id,
                created_at=now,
                audit_id=audit_id,
                kind=kind,
                status="queued",
                request=msgspec.to_builtins(request),
                fence=1,
                sequence=0,
                lease_expires_at=now + timedelta(seconds=queued_seconds(tenant.services.settings)),
                done=0,
                total=0,
            )
        )
    announce(lambda: tenant.services.queue.job_added(tenant.project_id, row.id))
    return row


def read_job(tenant: Tenant, audit_id: str, job_id: str, kind: JobKind) -> JobRow:
    """The job of an audit that a path names; raises 404."""
    with tenant.read() as repositories:
        return _job_row(repositories, audit_id, job_id, kind)


def list_jobs(
    tenant: Tenant,
    audit_id: str,
    kind: JobKind,
    render: Callable[[JobRow], T],
    *,
    limit: int,
    cursor: str | None,
) -> Page[T]:
    """One page of an audit's jobs of a kind, newest first; raises 404."""
    with tenant.read() as repositories:
        found(repositories.audits, audit_id, "audit")
    return list_rows(
        tenant, lambda rows: rows.jobs, render, limit=limit, cursor=cursor, audit_id=audit_id, kind=kind
    )


def delete_job(tenant: Tenant, audit_id: str, job_id: str, kind: JobKind) -> Deleted:
    """Delete a job in any state and its result; raises 404."""
    with tenant.write() as repositories:
        row = _job_row(repositories, audit_id, job_id, kind, lock=True)
        repositories.deletions.add_prefix(job_prefix(tenant.project_id, audit_id, job_id))
        repositories.jobs.remove(row)
    announce(tenant.services.queue.deletions_added)
    return Deleted(id=job_id)


def shown(row: JobRow, store: ObjectStore | None = None) -> dict[str, Any]:
    """The fields that every kind of job has as a resource; with its result when a store is given.

    Raises 500 `result_unreadable` where the store no longer holds what control had read.
    """
    running = row.status == "running"
    return {
        "id": row.id,
        "audit": row.audit_id,
        "status": row.status,
        "progress": Progress(done=row.done, total=row.total, unit=_UNITS[row.kind]) if running else None,
        "result": None if store is None else _result(row, store),
        # The fault of an attempt that is being made again is not shown.
        "error": msgspec.convert(row.error, AuditError) if row.status == "failed" else None,
        "created_at": rfc3339(row.created_at),
        "started_at": rfc3339_or_none(row.started_at),
        "ended_at": rfc3339_or_none(row.ended_at),
    }


def _result(row: JobRow, store: ObjectStore) -> Any:  # noqa: ANN401  (of the kind's type)
    if row.status != "succeeded" or row.result_key is None:
        return None
    try:
        return read_result(store, row.result_key, row.kind)  # pyright: ignore[reportArgumentType]
    except BadResult as error:
        detail = f"The store holds {error}: delete this {row.kind} and ask again."
        raise ProblemError(500, "result_unreadable", detail) from error


def _job_row(
    repositories: Repositories, audit_id: str, job_id: str, kind: JobKind, *, lock: bool = False
) -> JobRow:
    found(repositories.audits, audit_id, "audit")
    row = found(repositories.jobs, job_id, kind, lock=lock)
    if row.audit_id != audit_id or row.kind != kind:
        raise not_found(kind)
    return row
