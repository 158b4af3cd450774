"""Applies steps: one transaction for the record, then the messages that follow from it.

A crash between the two loses messages, never the record: a queued unit has a deadline by which it must
be taken up, and the sweeper looks after those that were not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from atomscope.bundle import Bundle
from atomscope.bundle.layout import attempt_prefix, extraction_prefix
from atomscope.errors import BundleError
from atomscope.store import ObjectStore
from atomscope.types.resources import TERMINAL
from atomscope.types.spec import AuditSpec, ParentRef
from atomscope.types.work import UnitOrder
from atomscope_service.control import records
from atomscope_service.control.broker import Broker, BrokerUnavailable
from atomscope_service.control.spec import InputMissing, audit_spec, refit_spec, spec_key
from atomscope_service.control.state import begin, fail, on_cancel
from atomscope_service.control.steps import Audit, Limits, Step, Unit
from atomscope_service.db import extractions
from atomscope_service.db.engine import Database
from atomscope_service.db.models import AuditRow, UnitRow
from atomscope_service.settings import Settings, queued_seconds

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.5
"""An audit tells its progress at most this often."""
HEARTBEATS_PER_LEASE = 4
"""Beats in a lease: three may be lost before a worker is taken for dead."""

Decide = Callable[[Session, Audit], Step | None]


class Scheduler:
    """Everything that changes the record of an audit goes through `change`."""

    def __init__(self, database: Database, store: ObjectStore, broker: Broker, settings: Settings) -> None:
        self.database = database
        self.store = store
        self.broker = broker
        self.settings = settings
        self.heartbeat_seconds = min(
            settings.heartbeat_seconds, settings.lease_seconds / HEARTBEATS_PER_LEASE
        )
        self.limits = Limits(
            lease=timedelta(seconds=settings.lease_seconds),
            queued=timedelta(seconds=queued_seconds(settings)),
            max_attempts=settings.max_fences,
        )

    def start(self, project_id: str, audit_id: str) -> None:
        """Write the audit's spec and queue its first unit; nothing happens if that was done before."""
        try:
            found = self._spec(project_id, audit_id)
        except (InputMissing, BundleError) as error:
            self.fail(project_id, audit_id, "input_missing", str(error))
            return
        if found is None:
            return
        spec, attempt = found
        key = spec_key(attempt_prefix(project_id, audit_id, attempt))
        self.store.put_bytes(key, msgspec.json.format(msgspec.json.encode(spec), indent=2))
        self.change(project_id, audit_id, self._begin)

    def _spec(self, project_id: str, audit_id: str) -> tuple[AuditSpec, int] | None:
        """The spec and the attempt of a queued audit, with the extractions that it may use from now on."""
        parent = self._parent(project_id, audit_id)
        # Outside of a transaction: it reads from the store.
        of_parent = None if parent is None else Bundle(self.store, parent.location).spec
        with self.database.write() as session:
            row = records.lock_audit(session, project_id, audit_id)
            if row is None or row.status != "queued":
                return None
            if parent is not None and of_parent is not None:
                return refit_spec(session, row, parent, of_parent), row.attempt
            spec = audit_spec(session, row)
            used = extractions.claim(session, row, spec.base_model.sha256, spec.adapter.sha256)
            prefixes = [extraction_prefix(project_id, extraction) for extraction in used]
            return msgspec.structs.replace(spec, extractions=prefixes), row.attempt

    def _parent(self, project_id: str, audit_id: str) -> ParentRef | None:
        """Of a refit, its parent's bundle; raises `InputMissing`."""
        with self.database.read() as session:
            row = session.get(AuditRow, audit_id)
            if row is None or row.project_id != project_id or row.parent_id is None:
                return None
            parent = session.get(AuditRow, row.parent_id)
            if parent is None or parent.project_id != project_id or parent.bundle_prefix is None:
                raise InputMissing(f"audit {row.parent_id} is not there")
            return ParentRef(audit_id=parent.id, location=parent.bundle_prefix)

    def cancel(self, project_id: str, audit_id: str) -> None:
        """Stop an audit; also carries on with a cancel that was begun."""

        def decide(session: Session, audit: Audit) -> Step | None:
            return on_cancel(audit, lambda: records.stage_units(session, audit), datetime.now(UTC))

        # The flag first: a worker that starts a unit between the two already sees it.
        with self.database.read() as session:
            row = session.get(AuditRow, audit_id)
            if row is None or row.project_id != project_id or row.status in TERMINAL:
                return
        try:
            self.broker.flag_cancel(audit_id)
        except BrokerUnavailable as error:
            logger.warning("audit %s: its workers could not be told to stop: %s", audit_id, error)
        self.change(project_id, audit_id, decide)

    def fail(self, project_id: str, audit_id: str, code: str, detail: str) -> None:
        """End an audit that control itself finds impossible."""

        def decide(session: Session, audit: Audit) -> Step | None:
            error = {"code": code, "detail": detail, "errors": []}
            return fail(audit, lambda: records.stage_units(session, audit), error, datetime.now(UTC))

        self.change(project_id, audit_id, decide)

    def change(self, project_id: str, audit_id: str, decide: Decide) -> Step | None:
        """Lock the audit, decide, write, commit; then send what follows. None when nothing changed."""
        with self.database.write() as session:
            row = records.lock_audit(session, project_id, audit_id)
            if row is None:
                return None
            step = decide(session, records.audit_of(row))
            if step is None:
                return None
            records.save(session, row, step)
            if step.progress and self._may_tell(audit_id, step):
                records.append_progress(session, row)
            winners = records.winners(session, step.audit) if step.send else {}
        self._after(step, winners)
        return step

    def _begin(self, session: Session, audit: Audit) -> Step | None:
        units = select(func.count()).where(UnitRow.audit_id == audit.id, UnitRow.attempt == audit.attempt)
        if session.execute(units).scalar_one():
            return None
        return begin(audit, datetime.now(UTC), self.limits, records.unit_id)

    def _may_tell(self, audit_id: str, step: Step) -> bool:
        if all(unit.state == "succeeded" for unit in step.units):
            return True  # the last word on a shard is never dropped
        try:
            return self.broker.may_tell(f"progress:{audit_id}", PROGRESS_SECONDS)
        except BrokerUnavailable:
            return False

    def _after(self, step: Step, winners: dict[str, list[int]]) -> None:
        ended = [unit.id for unit in step.units if unit.state in ("succeeded", "failed", "stopped")]
        try:
            self.broker.retire(ended)
            for unit in step.send:
                self.broker.send_order(self._order(step.audit, unit, winners))
        except BrokerUnavailable as error:
            logger.warning("audit %s: messages are left to the sweeper: %s", step.audit.id, error)
        for kind, data in step.events:
            logger.info("audit %s: %s %s", step.audit.id, kind, data)

    def _order(self, audit: Audit, unit: Unit, winners: dict[str, list[int]]) -> UnitOrder:
        prefix = attempt_prefix(audit.project_id, audit.id, audit.attempt)
        return UnitOrder(
            project_id=audit.project_id,
            audit_id=audit.id,
            attempt=audit.attempt,
            unit_id=unit.id,
            stage=unit.stage,
            index=unit.index,
            fence=unit.fence,
            work_prefix=prefix,
            spec_key=spec_key(prefix),
            winners=winners,
            heartbeat_seconds=self.heartbeat_seconds,
        )
