"""The history of an audit: rows whose sequence rises by one, without gaps."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from atomscope_service.db.models import AuditRow, EventRow
from atomscope_service.ids import new_id


def append_event(session: Session, audit: AuditRow, type: str, data: dict[str, Any]) -> EventRow:
    """Add an event to an audit in the session's transaction and return its row.

    The counter is incremented in the database, which locks the audit's row until the transaction ends:
    two transactions cannot take one number, and a reader never sees a number before a lower one.
    """
    session.flush()
    sequence = session.execute(
        update(AuditRow)
        .where(AuditRow.id == audit.id, AuditRow.project_id == audit.project_id)
        .values(event_sequence=AuditRow.event_sequence + 1)
        .returning(AuditRow.event_sequence)
        .execution_options(synchronize_session=False)
    ).scalar_one()
    set_committed_value(audit, "event_sequence", sequence)
    row = EventRow(
        id=new_id("evt"),
        project_id=audit.project_id,
        created_at=datetime.now(UTC),
        audit_id=audit.id,
        sequence=sequence,
        type=type,
        data=data,
    )
    session.add(row)
    session.flush()
    return row
