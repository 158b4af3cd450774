"""Gradients whose time is over: audits let go of them, and keep their atoms, vectors and reports."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from sqlalchemy import exists, select

from atomscope.types.resources import TERMINAL
from atomscope_service.control import records
from atomscope_service.db.engine import Database
from atomscope_service.db.gradients import expires_at, gradients_of, let_go
from atomscope_service.db.models import AuditRow, JobRow
from atomscope_service.db.repositories import Repositories

logger = logging.getLogger(__name__)

BATCH = 100
"""Audits that are looked after in one go; the others wait for the next round."""


def expire_gradients(database: Database, days: float) -> int:
    """Let audits that ended `days` ago go of their gradients; how many did. With 0 days none ever does.

    One that an attribution is asked of waits: it may be reading them.
    """
    if days == 0:
        return 0
    now = datetime.now(UTC)
    asked = exists().where(
        JobRow.audit_id == AuditRow.id, JobRow.kind == "attribution", JobRow.ended_at.is_(None)
    )
    with database.read() as session:
        due = session.execute(
            select(AuditRow.project_id, AuditRow.id)
            .where(
                AuditRow.status.in_(sorted(TERMINAL)),
                AuditRow.gradients_expired_at.is_(None),
                AuditRow.ended_at <= now - timedelta(days=days),
                ~asked,
            )
            .order_by(AuditRow.ended_at)
            .limit(BATCH)
        ).all()
    done = 0
    for project_id, audit_id in due:
        with database.write() as session:
            row = records.lock_audit(session, project_id, audit_id)
            if row is None:
                continue
            if gradients_of(row) in ("sketch", "none"):
                row.gradients_expired_at = row.ended_at  # it is not looked at again
                continue
            at = expires_at(row, days)
            if (
                at is None
                or at > now
                or Repositories(session, project_id).jobs.live_of(audit_id, kind="attribution")
            ):
                continue
            let_go(session, row, now)
            done += 1
            logger.info("audit %s: its gradients have expired", audit_id)
    return done
