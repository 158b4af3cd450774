"""Looks after what no message will: leases that ran out, orders that got lost, audits nobody started."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from atomscope_service.control import records
from atomscope_service.control.overdue import Deliveries, apart
from atomscope_service.control.scheduler import Scheduler
from atomscope_service.control.state import on_expiry
from atomscope_service.control.steps import LIVE_UNIT, Audit, Delivery, Step
from atomscope_service.db.models import AuditRow, UnitRow

logger = logging.getLogger(__name__)

BATCH = 500
"""Units looked after in one sweep; the others wait for the next one."""


def sweep(scheduler: Scheduler) -> int:
    """One pass over the record; how many units it changed. Several control workers may sweep at once.

    Raises `BrokerUnavailable` when an overdue unit's message cannot be looked for.
    """
    _start_the_forgotten(scheduler)
    _carry_on_cancels(scheduler)
    with scheduler.database.read() as session:
        overdue = records.overdue_units(session, datetime.now(UTC), BATCH)
    deliveries = Deliveries(scheduler.broker)
    changed = 0
    for project_id, audit_id, unit_id, state, fence in overdue:
        delivery = deliveries.of(unit_id, fence) if state == "queued" else "lost"
        with apart(audit_id):
            changed += _expire(scheduler, project_id, audit_id, unit_id, fence, delivery)
    return changed


def _expire(
    scheduler: Scheduler, project_id: str, audit_id: str, unit_id: str, fence: int, delivery: Delivery
) -> bool:
    def decide(session: Session, audit: Audit) -> Step | None:
        unit = records.find_unit(session, audit, unit_id)
        if unit is None or unit.fence != fence:
            return None  # another control worker was faster
        return on_expiry(
            audit,
            unit,
            lambda: records.stage_units(session, audit),
            delivery,
            datetime.now(UTC),
            scheduler.limits,
        )

    step = scheduler.change(project_id, audit_id, decide)
    if step is None:
        return False
    for unit in step.units:
        logger.info(
            "audit %s: %s %d is %s, fence %d", audit_id, unit.stage, unit.index, unit.state, unit.fence
        )
    return True


def _start_the_forgotten(scheduler: Scheduler) -> None:
    """Start the audits whose message never came: the broker was down when they were made."""
    with scheduler.database.read() as session:
        forgotten = session.execute(
            select(AuditRow.project_id, AuditRow.id)
            .where(AuditRow.status == "queued", ~exists().where(UnitRow.audit_id == AuditRow.id))
            .limit(BATCH)
        ).all()
    for project_id, audit_id in forgotten:
        with apart(audit_id):
            scheduler.start(project_id, audit_id)


def _carry_on_cancels(scheduler: Scheduler) -> None:
    """Carry on with cancels whose message never came, or whose audit has no unit left to end it."""
    live_queued = exists().where(
        UnitRow.audit_id == AuditRow.id, UnitRow.attempt == AuditRow.attempt, UnitRow.state == "queued"
    )
    live = exists().where(
        UnitRow.audit_id == AuditRow.id,
        UnitRow.attempt == AuditRow.attempt,
        UnitRow.state.in_(sorted(LIVE_UNIT)),
    )
    with scheduler.database.read() as session:
        canceling = session.execute(
            select(AuditRow.project_id, AuditRow.id)
            .where(AuditRow.status == "canceling", live_queued | ~live)
            .limit(BATCH)
        ).all()
    for project_id, audit_id in canceling:
        with apart(audit_id):
            scheduler.cancel(project_id, audit_id)
