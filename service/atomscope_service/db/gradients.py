"""What is left of an audit's gradients, and letting go of them while all else of it stays.

Every function works in the caller's transaction, on a row that the caller has locked where it changes it.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from atomscope.types.resources import TERMINAL, GradientsKept
from atomscope_service.db import extractions
from atomscope_service.db.models import AuditRow


def gradients_of(row: AuditRow) -> GradientsKept | None:
    """What is left of them; None before the audit has ended."""
    if row.status not in TERMINAL:
        return None
    match row.config.get("gradients"):
        case "sketch" | "none" as setting:
            return setting
        case _:
            pass
    return "kept" if row.gradients_expired_at is None else "expired"


def expires_at(row: AuditRow, days: float) -> datetime | None:
    """When they will expire, `days` after the audit's end; None when they will not, with 0 days too."""
    if days == 0 or row.ended_at is None or gradients_of(row) != "kept":
        return None
    return row.ended_at + timedelta(days=days)


def let_go(session: Session, row: AuditRow, now: datetime) -> None:
    """Have an ended audit use no extraction any more: what nobody else uses is removed. Twice is once."""
    if gradients_of(row) == "kept":
        extractions.release(session, row.project_id, row.id)
        row.gradients_expired_at = now
        session.flush()
