"""A whole audit without a database, a broker or a clock, and everything that can befall it."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from atomscope.types.work import STAGES, Report, UnitReport, UnitSucceeded, unit_count
from atomscope_service.control.state import on_report
from atomscope_service.control.steps import Audit, Delivery, Limits, Rejected, Step, Unit

LIMITS = Limits(lease=timedelta(seconds=60), queued=timedelta(seconds=30), max_attempts=5)
START = datetime(2026, 1, 1, tzinfo=UTC)


def report_of(audit: Audit, unit: Unit, kind: type[UnitReport], sequence: int, /, **facts: Any) -> Any:
    """A report of a unit under its present fence, with what a success of its stage must tell."""
    if kind is UnitSucceeded and unit.stage == "validate":
        facts = {"shards": 3, "documents": 30} | facts
    return kind(
        project_id=audit.project_id,
        audit_id=audit.id,
        attempt=audit.attempt,
        unit_id=unit.id,
        stage=unit.stage,
        index=unit.index,
        fence=unit.fence,
        sequence=sequence,
        worker="w",
        **facts,
    )


class Record:
    """What the database would hold, and what was ever true of it."""

    def __init__(self) -> None:
        self.audit = Audit(id="aud_1", project_id="prj_1")
        self.units: dict[str, Unit] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.sent: list[Unit] = []
        self.now = START
        self.endings = 0
        self.finished: dict[tuple[str, int], int] = {}
        self._ids = itertools.count(1)

    def unit_id(self) -> str:
        return f"unt_{next(self._ids)}"

    def siblings(self) -> list[Unit]:
        stage = self.audit.stage or STAGES[0]
        return [unit for unit in self.units.values() if unit.stage == stage]

    def apply(self, step: Step | Rejected | None) -> bool:
        """Write a step, after checking that it is a legal one."""
        if step is None or isinstance(step, Rejected):
            return False
        terminal = ("succeeded", "failed", "canceled")
        assert self.audit.status not in terminal, "an audit that has ended was changed"
        for unit in step.units:
            before = self.units[unit.id]
            assert before.state in ("queued", "leased"), f"{before.state} -> {unit.state}"
            assert before.fence <= unit.fence <= before.fence + 1
            assert unit.fence > before.fence or unit.sequence >= before.sequence
            if unit.state == "succeeded":
                key = (unit.stage, unit.index)
                self.finished[key] = self.finished.get(key, 0) + 1
        for unit in step.created:
            assert unit.id not in self.units
            place = STAGES.index(unit.stage)
            if place:
                updated = self.units | {changed.id: changed for changed in step.units}
                # Of the last stage before that has units.
                counts = {
                    stage: unit_count(stage, step.audit.shards or 1, step.audit.planned_units)
                    for stage in STAGES[:place]
                }
                before = [stage for stage, count in counts.items() if count][-1]
                earlier = [other for other in updated.values() if other.stage == before]
                assert len(earlier) == counts[before]
                assert all(other.state == "succeeded" for other in earlier), "a stage started too early"
        if step.audit.status in terminal:
            self.endings += 1
        self.audit = step.audit
        self.units |= {unit.id: unit for unit in (*step.units, *step.created)}
        self.events += step.events
        self.sent += step.send
        return True

    def report(self, report: Report) -> bool:
        """Take a report in; False when it was rejected."""
        unit = self.units[report.unit_id]
        step = on_report(self.audit, unit, self.siblings, report, self.now, LIMITS, self.unit_id)
        return self.apply(step)

    def live(self) -> list[Unit]:
        return [unit for unit in self.units.values() if unit.state in ("queued", "leased")]


def renumbered(report: UnitReport, **changes: Any) -> Any:
    return msgspec.structs.replace(report, **changes)


DELIVERIES: tuple[Delivery, ...] = ("waiting", "taken", "lost")
