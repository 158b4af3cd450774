"""What is recorded of audits and their units, and what one transition changes of it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec

from atomscope.types.resources import AuditStatus
from atomscope.types.work import Stage

UnitState = Literal["queued", "leased", "succeeded", "failed", "stopped"]
Delivery = Literal["waiting", "taken", "lost"]
"""Where a queued unit's message is: in the broker's queue, with a worker, or nowhere."""

LIVE_UNIT: frozenset[UnitState] = frozenset({"queued", "leased"})
MAX_EXCUSED = 20
"""Retries that do not count as attempts, so that a worker that always gives up cannot loop for ever."""


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """A unit as recorded (see `atomscope_service.db.models.UnitRow`)."""

    id: str
    stage: Stage
    index: int
    state: UnitState = "queued"
    fence: int = 1
    sequence: int = 0
    worker: str | None = None
    lease_expires_at: datetime | None = None
    done: int = 0
    total: int = 0
    progress_unit: str = "documents"
    error: dict[str, Any] | None = None
    """The last fault: `code`, `detail`; `excused` counts the retries that were no worker's failure."""

    @property
    def excused(self) -> int:
        return int((self.error or {}).get("excused", 0))

    @property
    def attempts(self) -> int:
        """Sends that count against the cap, the present one included."""
        return self.fence - min(self.excused, MAX_EXCUSED)


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """An audit as recorded (see `atomscope_service.db.models.AuditRow`)."""

    id: str
    project_id: str
    status: AuditStatus = "queued"
    stage: Stage | None = None
    attempt: int = 1
    warnings: tuple[str, ...] = ()
    shards: int | None = None
    planned_units: dict[Stage, int] = {}
    """Units of `PLANNED` stages, as `validate` told."""
    n_documents: int | None = None
    n_atoms: int | None = None
    bundle_prefix: str | None = None
    error: dict[str, Any] | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    lease: timedelta
    queued: timedelta
    """After which a queued unit's message is looked for in the broker."""
    max_attempts: int


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What changes: units that are recorded, units to be `created`, and those whose order must be sent."""

    audit: Audit
    units: tuple[Unit, ...] = ()
    created: tuple[Unit, ...] = ()
    events: tuple[tuple[str, dict[str, Any]], ...] = ()
    send: tuple[Unit, ...] = ()
    extractions: tuple[str, ...] | None = None
    """Whose stored shards the audit uses, of those it might have; None leaves that as it is."""
    progress: bool = False
    """Whether counts changed, which may be told as an `audit.progress` event."""


class Rejected(msgspec.Struct, frozen=True):
    """A report that changes nothing, and why."""

    reason: str
