"""The state machines of audits and units, as pure functions.

    audit:  queued -> running -> succeeded | failed
            queued -> failed;  queued | running -> canceling -> canceled
    unit:   queued -> leased -> succeeded | failed | stopped;  leased | queued -> queued, fence + 1

Each function takes the record as it is and something that happened (a report, a lease that ran out, a
request to cancel) and returns a `Step`: the record as it shall be, the events to tell, the units to
send. `Rejected` says why nothing changes. Nothing here reads a clock, a database or a broker.

Whatever the order, repetition or loss of messages: a unit is counted once, its fence only rises, a stage
starts only when every unit of the last one before it that has any has succeeded, and an audit ends once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from atomscope.bundle.layout import bundle_prefix
from atomscope.text import counted
from atomscope.types.resources import TERMINAL
from atomscope.types.work import (
    MESSAGE_VERSION,
    STAGES,
    Report,
    Stage,
    UnitAbandoned,
    UnitFailed,
    UnitHeartbeat,
    UnitStarted,
    UnitSucceeded,
    unit_count,
)
from atomscope_service.control import bounds
from atomscope_service.control.steps import (
    LIVE_UNIT,
    Audit,
    Delivery,
    Limits,
    Rejected,
    Step,
    Unit,
    UnitState,
)

Siblings = Callable[[], Sequence[Unit]]
"""Every unit of the audit's attempt at its present stage, as recorded; called only when it matters."""


def begin(audit: Audit, now: datetime, limits: Limits, unit_id: Callable[[], str]) -> Step | None:
    """The first unit of a new audit; None unless the audit is queued. It runs once a worker takes it."""
    if audit.status != "queued":
        return None
    units = _stage_units("validate", 1, now, limits, unit_id)
    return Step(audit=audit, created=units, send=units)


def on_report(
    audit: Audit,
    unit: Unit,
    siblings: Siblings,
    report: Report,
    now: datetime,
    limits: Limits,
    unit_id: Callable[[], str],
) -> Step | Rejected:
    """What a worker's report changes, if it is one of the live attempt, fence and sequence."""
    reason = _refusal(audit, unit, report)
    if reason is not None:
        return Rejected(reason)
    unit = msgspec.structs.replace(
        unit, sequence=report.sequence, worker=bounds.text(report.worker, bounds.NAME)
    )
    match report:
        case UnitStarted():
            return _taken(audit, unit, now, limits)
        case UnitHeartbeat():
            return _heartbeat(audit, unit, report, now, limits)
        case UnitSucceeded():
            return _succeeded(audit, unit, siblings, report, now, limits, unit_id)
        case UnitFailed():
            return _failed(audit, unit, siblings, report, now, limits)
        case UnitAbandoned():
            return _again(
                audit, unit, siblings, "worker_stopped", "the worker was stopped", now, limits, excuse=True
            )


def on_expiry(
    audit: Audit, unit: Unit, siblings: Siblings, delivery: Delivery, now: datetime, limits: Limits
) -> Step | None:
    """What the passing of a unit's deadline changes; None when it has not passed or the unit is not live.

    A queued unit is judged by where its message is. `waiting`: the queue is merely long. `lost`: the
    order is sent again under the same fence, which counts for nothing. `taken`: a worker has it but its
    first report has not come; it gets a lease, and is sent again under a higher fence when that ends.
    """
    if audit.status in TERMINAL or unit.state not in LIVE_UNIT:
        return None
    if unit.lease_expires_at is not None and unit.lease_expires_at > now:
        return None
    if audit.status == "canceling" or unit.state == "leased":
        return _again(
            audit, unit, siblings, "lease_expired", "the worker's lease expired", now, limits, excuse=False
        )
    if delivery == "taken":
        return _taken(audit, unit, now, limits)
    waiting = msgspec.structs.replace(unit, lease_expires_at=now + limits.queued)
    return Step(audit=audit, units=(waiting,), send=(waiting,) if delivery == "lost" else ())


def on_cancel(audit: Audit, siblings: Siblings, now: datetime) -> Step | None:
    """Stop an audit: queued units at once, leased ones when their workers notice. None if it has ended."""
    if audit.status in TERMINAL:
        return None
    events: tuple[tuple[str, dict[str, Any]], ...] = ()
    if audit.status != "canceling":
        audit = msgspec.structs.replace(audit, status="canceling")
        events = (("audit.canceling", {}),)
    units = siblings()
    stopped = tuple(_end(unit, "stopped") for unit in units if unit.state == "queued")
    step = Step(audit=audit, units=stopped, events=events)
    return _settle(step, units, now)


def fail(audit: Audit, siblings: Siblings, error: dict[str, Any], now: datetime) -> Step | None:
    """End an audit as failed (or as canceled, if that was asked) and stop its units. None if it has ended."""
    if audit.status in TERMINAL:
        return None
    return _fail(audit, (), siblings(), error, now)


# ------------------------------------------------------------------ reports


def _refusal(audit: Audit, unit: Unit, report: Report) -> str | None:
    checks: tuple[tuple[bool, str], ...] = (
        (report.v == MESSAGE_VERSION, f"message version {report.v} is not {MESSAGE_VERSION}"),
        (report.project_id == audit.project_id and report.audit_id == audit.id, "it names another audit"),
        (audit.status not in TERMINAL, f"the audit has ended ({audit.status})"),
        (report.attempt == audit.attempt, f"attempt {report.attempt} is not the live one ({audit.attempt})"),
        (report.unit_id == unit.id, "it names another unit"),
        (report.stage == unit.stage and report.index == unit.index, "it names another stage or shard"),
        (report.fence == unit.fence, f"fence {report.fence} is not the live one ({unit.fence})"),
        (unit.state in LIVE_UNIT, f"the unit is {unit.state}"),
        (report.sequence > unit.sequence, f"sequence {report.sequence} is not above {unit.sequence}"),
        (not (isinstance(report, UnitStarted) and unit.state == "leased"), "the unit has started already"),
    )
    return next((reason for holds, reason in checks if not holds), None)


def _taken(audit: Audit, unit: Unit, now: datetime, limits: Limits) -> Step:
    """A worker holds the unit. Reports get lost, so any report of a queued unit means the same."""
    leased = msgspec.structs.replace(unit, state="leased", lease_expires_at=now + limits.lease)
    if audit.status != "queued":
        return Step(audit=audit, units=(leased,))
    running = msgspec.structs.replace(audit, status="running", stage=unit.stage, started_at=now)
    events = (("audit.running", {}), ("audit.stage", {"stage": unit.stage, "units": 1}))
    return Step(audit=running, units=(leased,), events=events)


def _heartbeat(audit: Audit, unit: Unit, report: UnitHeartbeat, now: datetime, limits: Limits) -> Step:
    done, total, counted = bounds.counts(report)
    unit = msgspec.structs.replace(unit, done=done, total=total, progress_unit=counted)
    if audit.status == "canceling" and unit.state == "leased":
        # The lease is not renewed, so that a worker deep in one long operation cannot hold up the cancel.
        return Step(audit=audit, units=(unit,))
    return msgspec.structs.replace(_taken(audit, unit, now, limits), progress=True)


def _succeeded(
    audit: Audit,
    unit: Unit,
    siblings: Siblings,
    report: UnitSucceeded,
    now: datetime,
    limits: Limits,
    unit_id: Callable[[], str],
) -> Step:
    facts = bounds.facts(report)
    if isinstance(facts, str):
        error = {"code": "bad_report", "detail": f"a worker's report could not be used: {facts}"}
        return _fail(audit, (_end(unit, "failed", error),), siblings(), error, now)
    lost = audit.status == "queued"  # every earlier report
    started = _taken(audit, unit, now, limits) if lost else Step(audit=audit)
    audit = started.audit
    unit = msgspec.structs.replace(_end(unit, "succeeded"), done=unit.total)
    others = [other for other in siblings() if other.id != unit.id]
    audit, warned = _record(audit, facts)
    step = Step(
        audit=audit,
        units=(unit,),
        events=started.events + warned,
        extractions=facts.extractions,
        progress=True,
    )
    if audit.status == "canceling":
        return _settle(step, others, now)
    if any(other.state != "succeeded" for other in others):
        return step
    if unit.stage == STAGES[-1]:
        prefix = bundle_prefix(audit.project_id, audit.id, audit.attempt, unit.fence)
        ended = msgspec.structs.replace(audit, status="succeeded", bundle_prefix=prefix, ended_at=now)
        done = ("audit.succeeded", {"n_atoms": audit.n_atoms, "n_documents": audit.n_documents})
        return msgspec.structs.replace(step, audit=ended, events=(*step.events, done))
    following, count = _next_stage(audit, unit.stage)
    fresh = _stage_units(following, count, now, limits, unit_id)
    return msgspec.structs.replace(
        step,
        audit=msgspec.structs.replace(audit, stage=following),
        created=fresh,
        events=(*step.events, ("audit.stage", {"stage": following, "units": count})),
        send=fresh,
    )


def _next_stage(audit: Audit, stage: Stage) -> tuple[Stage, int]:
    """The first stage after this one that has units, and how many; the last stage always has one."""
    for following in STAGES[STAGES.index(stage) + 1 : -1]:
        count = unit_count(following, audit.shards or 1, audit.planned_units)
        if count:
            return following, count
    return STAGES[-1], 1


def _record(audit: Audit, facts: bounds.Facts) -> tuple[Audit, tuple[tuple[str, dict[str, Any]], ...]]:
    """The audit with what a successful unit told of it."""
    room = bounds.MAX_WARNINGS - len(audit.warnings)
    warnings = facts.warnings[: max(0, room)]
    audit = msgspec.structs.replace(
        audit,
        warnings=(*audit.warnings, *warnings),
        shards=audit.shards if facts.shards is None else facts.shards,
        planned_units=audit.planned_units if facts.units is None else facts.units,
        n_documents=audit.n_documents if facts.documents is None else facts.documents,
        n_atoms=audit.n_atoms if facts.atoms is None else facts.atoms,
    )
    planned = () if facts.plan is None else (("audit.planned", facts.plan),)
    return audit, (*planned, *(("audit.warning", {"message": warning}) for warning in warnings))


def _failed(
    audit: Audit, unit: Unit, siblings: Siblings, report: UnitFailed, now: datetime, limits: Limits
) -> Step:
    error = bounds.error(report)
    if report.retryable:
        return _again(audit, unit, siblings, error["code"], error["detail"], now, limits, excuse=False)
    return _fail(audit, (_end(unit, "failed", error),), siblings(), error, now)


# ------------------------------------------------------------------ endings


def _again(
    audit: Audit,
    unit: Unit,
    siblings: Siblings,
    code: str,
    detail: str,
    now: datetime,
    limits: Limits,
    *,
    excuse: bool,
) -> Step:
    """Send a unit again under a higher fence; or stop it with its audit; or fail on the last attempt."""
    error: dict[str, Any] = {"code": code, "detail": detail, "excused": unit.excused + excuse}
    if audit.status == "canceling":
        return _settle(Step(audit=audit, units=(_end(unit, "stopped", error),)), siblings(), now)
    following = msgspec.structs.replace(
        unit,
        state="queued",
        fence=unit.fence + 1,
        sequence=0,
        worker=None,
        lease_expires_at=now + limits.queued,
        done=0,
        error=error,
    )
    if following.attempts > limits.max_attempts:
        exhausted = {
            "code": "unit_attempts_exhausted",
            "detail": f"{unit.stage} {unit.index} failed {counted(limits.max_attempts, 'time')}, "
            f"the last time: {detail}",
            "errors": [{"code": code, "message": detail}],
        }
        return _fail(audit, (_end(unit, "failed", error),), siblings(), exhausted, now)
    told = {"stage": unit.stage, "index": unit.index, "fence": following.fence, "code": code}
    return Step(
        audit=audit,
        units=(following,),
        events=(("audit.unit_retried", told),),
        send=(following,),
        progress=True,
    )


def _fail(
    audit: Audit, changed: tuple[Unit, ...], siblings: Sequence[Unit], error: dict[str, Any], now: datetime
) -> Step:
    if audit.status == "canceling":
        return _settle(Step(audit=audit, units=changed), siblings, now)
    done = {unit.id for unit in changed}
    stopped = [_end(unit, "stopped") for unit in siblings if unit.id not in done and unit.state in LIVE_UNIT]
    shown = {"code": error["code"], "detail": error["detail"], "errors": error.get("errors", [])}
    ended = msgspec.structs.replace(audit, status="failed", error=shown, ended_at=now)
    return Step(audit=ended, units=(*changed, *stopped), events=(("audit.failed", shown),))


def _settle(step: Step, siblings: Sequence[Unit], now: datetime) -> Step:
    """End an audit that is being canceled once none of its units is live."""
    changed = {unit.id: unit for unit in step.units}
    if any(changed.get(unit.id, unit).state in LIVE_UNIT for unit in siblings):
        return step
    ended = msgspec.structs.replace(step.audit, status="canceled", ended_at=now)
    return msgspec.structs.replace(step, audit=ended, events=(*step.events, ("audit.canceled", {})))


def _end(unit: Unit, state: UnitState, error: dict[str, Any] | None = None) -> Unit:
    return msgspec.structs.replace(unit, state=state, lease_expires_at=None, error=error or unit.error)


def _stage_units(
    stage: Stage, count: int, now: datetime, limits: Limits, unit_id: Callable[[], str]
) -> tuple[Unit, ...]:
    return tuple(
        Unit(id=unit_id(), stage=stage, index=index, lease_expires_at=now + limits.queued)
        for index in range(count)
    )
