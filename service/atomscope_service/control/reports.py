"""Takes in what workers report, and says in the log what it refuses and why."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy.orm import Session

from atomscope.bundle.layout import MANIFEST, bundle_prefix
from atomscope.types.work import Report, UnitFailed, UnitSucceeded
from atomscope_service.control import records
from atomscope_service.control.scheduler import Scheduler
from atomscope_service.control.state import on_report
from atomscope_service.control.steps import Audit, Rejected, Step

logger = logging.getLogger(__name__)

MAX_REPORT_BYTES = 256 * 1024


def within_bounds(message: Any, kind: Any) -> Any:  # noqa: ANN401
    """The report of this kind in a message, or what is wrong with it, as a string."""
    try:
        size = len(msgspec.json.encode(message))
        if size > MAX_REPORT_BYTES:
            return f"{size} bytes are more than {MAX_REPORT_BYTES}"
        return msgspec.convert(message, kind, strict=True)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        return str(error)


def decode_report(message: Any) -> Report | str:  # noqa: ANN401
    """The report of a unit in a message, or what is wrong with it."""
    return within_bounds(message, Report)


def handle_report(scheduler: Scheduler, message: Any) -> bool:  # noqa: ANN401
    """Apply one report; False when it was refused.

    Raises what the database, the store and the broker raise when they are down: the message is then
    taken again.
    """
    report = decode_report(message)
    if isinstance(report, str):
        logger.warning("a report was refused: %s", report)
        return False
    report = _with_its_bundle(scheduler, report)
    refused: list[str] = []

    def decide(session: Session, audit: Audit) -> Step | None:
        unit = records.find_unit(session, audit, report.unit_id)
        if unit is None:
            refused.append("no such unit")
            return None
        outcome = on_report(
            audit,
            unit,
            lambda: records.stage_units(session, audit),
            report,
            datetime.now(UTC),
            scheduler.limits,
            records.unit_id,
        )
        if isinstance(outcome, Rejected):
            refused.append(outcome.reason)
            return None
        return outcome

    if scheduler.change(report.project_id, report.audit_id, decide) is None:
        logger.info(
            "a report was refused: %s of %s %d, audit %s, fence %d: %s",
            type(report).__name__,
            report.stage,
            report.index,
            report.audit_id,
            report.fence,
            refused[0] if refused else "no such audit",
        )
        return False
    return True


def _with_its_bundle(scheduler: Scheduler, report: Report) -> Report:
    """A `report` stage that succeeded has committed its bundle; one that has not, failed."""
    if not isinstance(report, UnitSucceeded) or report.stage != "report":
        return report
    prefix = bundle_prefix(report.project_id, report.audit_id, report.attempt, report.fence)
    if scheduler.store.exists(prefix + MANIFEST):
        return report
    return UnitFailed(
        project_id=report.project_id,
        audit_id=report.audit_id,
        attempt=report.attempt,
        unit_id=report.unit_id,
        stage=report.stage,
        index=report.index,
        fence=report.fence,
        sequence=report.sequence,
        worker=report.worker,
        v=report.v,
        code="bundle_missing",
        detail="the worker reported a bundle that is not in the store",
        retryable=True,
    )
