"""The record of audits and units in the database, read and written as the values of `control.steps`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
from sqlalchemy import case, func, select, update
from sqlalchemy.orm import Session

from atomscope.bundle.layout import attempt_prefix, bundle_prefix
from atomscope.types.resources import TERMINAL, AuditStatus
from atomscope.types.work import FAN_OUT, STAGES, Stage
from atomscope_service.control.steps import LIVE_UNIT, Audit, Step, Unit, UnitState
from atomscope_service.db import extractions
from atomscope_service.db.events import append_event
from atomscope_service.db.models import AuditRow, DeletionRow, UnitRow
from atomscope_service.ids import new_id


def unit_id() -> str:
    return new_id("unt")


def lock_audit(session: Session, project_id: str, audit_id: str) -> AuditRow | None:
    """The audit's row, locked until the transaction ends, so that its transitions come one after another.

    On SQLite the transaction itself holds the only write lock.
    """
    return session.scalars(
        select(AuditRow).where(AuditRow.id == audit_id, AuditRow.project_id == project_id).with_for_update()
    ).one_or_none()


def audit_of(row: AuditRow) -> Audit:
    return Audit(
        id=row.id,
        project_id=row.project_id,
        status=cast(AuditStatus, row.status),
        stage=cast(Stage | None, row.stage),
        attempt=row.attempt,
        warnings=tuple(row.warnings),
        shards=row.shards,
        planned_units=cast(dict[Stage, int], row.planned_units or {}),
        n_documents=row.n_documents,
        n_atoms=row.n_atoms,
        bundle_prefix=row.bundle_prefix,
        error=row.error,
        started_at=row.started_at,
        ended_at=row.ended_at,
    )


def unit_of(row: UnitRow) -> Unit:
    return Unit(
        id=row.id,
        stage=cast(Stage, row.stage),
        index=row.index,
        state=cast(UnitState, row.state),
        fence=row.fence,
        sequence=row.sequence,
        worker=row.worker,
        lease_expires_at=row.lease_expires_at,
        done=row.done,
        total=row.total,
        progress_unit=row.progress_unit,
        error=row.error,
    )


def find_unit(session: Session, audit: Audit, unit: str) -> Unit | None:
    row = session.scalars(
        select(UnitRow).where(
            UnitRow.id == unit, UnitRow.audit_id == audit.id, UnitRow.project_id == audit.project_id
        )
    ).one_or_none()
    return None if row is None else unit_of(row)


def stage_units(session: Session, audit: Audit) -> list[Unit]:
    """Every unit of the audit's attempt at its present stage, in index order."""
    rows = session.scalars(
        select(UnitRow)
        .where(
            UnitRow.audit_id == audit.id,
            UnitRow.project_id == audit.project_id,
            UnitRow.attempt == audit.attempt,
            UnitRow.stage == (audit.stage or STAGES[0]),
        )
        .order_by(UnitRow.index)
    )
    return [unit_of(row) for row in rows]


def winners(session: Session, audit: Audit) -> dict[str, list[int]]:
    """For every stage whose units have all succeeded, their fences in index order."""
    rows = session.execute(
        select(UnitRow.stage, UnitRow.fence, UnitRow.state)
        .where(
            UnitRow.audit_id == audit.id,
            UnitRow.project_id == audit.project_id,
            UnitRow.attempt == audit.attempt,
        )
        .order_by(UnitRow.index)
    ).all()
    unfinished = {stage for stage, _, state in rows if state != "succeeded"}
    fences: dict[str, list[int]] = {}
    for stage, fence, _ in rows:
        if stage not in unfinished:
            fences.setdefault(stage, []).append(fence)
    return fences


def save(session: Session, row: AuditRow, step: Step) -> None:
    """Write a step: the audit, its changed and new units, its events, and what may now be removed."""
    audit = step.audit
    ended = audit.status in TERMINAL and row.status not in TERMINAL
    for field in ("status", "stage", "shards", "planned_units", "n_documents", "n_atoms", "bundle_prefix"):
        setattr(row, field, getattr(audit, field))
    row.error = audit.error
    row.started_at, row.ended_at, row.warnings = audit.started_at, audit.ended_at, list(audit.warnings)
    for unit in step.units:
        session.execute(
            update(UnitRow)
            .where(UnitRow.id == unit.id, UnitRow.project_id == audit.project_id)
            .values(**_columns(unit))
            .execution_options(synchronize_session=False)
        )
    for unit in step.created:
        session.add(
            UnitRow(
                id=unit.id,
                project_id=audit.project_id,
                created_at=datetime.now(UTC),
                audit_id=audit.id,
                attempt=audit.attempt,
                **_columns(unit),
            )
        )
    session.flush()
    for kind, data in step.events:
        append_event(session, row, kind, data)
    if step.extractions is not None:
        extractions.keep(session, audit.project_id, audit.id, step.extractions)
    if ended:
        _discard_work(session, audit)


def _columns(unit: Unit) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(unit).items() if name != "id"}


def append_progress(session: Session, row: AuditRow) -> None:
    """Add an `audit.progress` event: the counts of the present stage over all its units."""
    audit = audit_of(row)
    if audit.stage is None or audit.status != "running":
        return
    done, total, units, finished, counted = session.execute(
        select(
            func.coalesce(func.sum(UnitRow.done), 0),
            func.coalesce(func.sum(UnitRow.total), 0),
            func.count(),
            func.coalesce(func.sum(case((UnitRow.state == "succeeded", 1), else_=0)), 0),
            func.max(UnitRow.progress_unit),
        ).where(UnitRow.audit_id == audit.id, UnitRow.attempt == audit.attempt, UnitRow.stage == audit.stage)
    ).one()
    data: dict[str, Any] = {"stage": audit.stage, "done": int(done), "total": int(total), "unit": counted}
    if audit.stage in FAN_OUT:
        if counted == "documents" and audit.n_documents is not None:
            # Shards that no worker has taken yet have no total of their own.
            data["total"] = max(audit.n_documents, int(done))
        data |= {"units_done": int(finished), "units": int(units)}
    append_event(session, row, "audit.progress", data)


def overdue_units(session: Session, now: datetime, limit: int) -> Sequence[tuple[str, str, str, str, int]]:
    """Project, audit, id, state and fence of live units whose deadline has passed, the oldest first."""
    rows = session.execute(
        select(UnitRow.project_id, UnitRow.audit_id, UnitRow.id, UnitRow.state, UnitRow.fence)
        .where(UnitRow.state.in_(sorted(LIVE_UNIT)), UnitRow.lease_expires_at <= now)
        .order_by(UnitRow.lease_expires_at)
        .limit(limit)
    )
    return [(project, audit, unit, state, fence) for project, audit, unit, state, fence in rows]


def _discard_work(session: Session, audit: Audit) -> None:
    """Have the work files of an ended attempt, and the bundles that did not win, removed later."""
    prefixes = [attempt_prefix(audit.project_id, audit.id, audit.attempt)]
    last = session.scalar(
        select(func.max(UnitRow.fence)).where(
            UnitRow.audit_id == audit.id, UnitRow.attempt == audit.attempt, UnitRow.stage == STAGES[-1]
        )
    )
    bundles = [
        bundle_prefix(audit.project_id, audit.id, audit.attempt, fence) for fence in range(1, (last or 0) + 1)
    ]
    for prefix in [*prefixes, *(bundle for bundle in bundles if bundle != audit.bundle_prefix)]:
        session.add(
            DeletionRow(
                id=new_id("del"), project_id=audit.project_id, created_at=datetime.now(UTC), prefix=prefix
            )
        )
