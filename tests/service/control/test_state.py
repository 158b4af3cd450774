"""The state machines, rule by rule."""

from __future__ import annotations

from datetime import timedelta

import pytest

from atomscope.types.work import (
    FAN_OUT,
    STAGES,
    UnitAbandoned,
    UnitFailed,
    UnitHeartbeat,
    UnitStarted,
    UnitSucceeded,
)
from atomscope_service.control.state import begin, fail, on_cancel, on_expiry
from atomscope_service.control.steps import MAX_EXCUSED
from tests.service.control.world import LIMITS, Record, renumbered, report_of


@pytest.fixture
def record() -> Record:
    record = Record()
    record.apply(begin(record.audit, record.now, LIMITS, record.unit_id))
    return record


def _only(record: Record) -> object:
    (unit,) = record.live()
    return unit


def _succeed(record: Record, **facts: object) -> None:
    """Have every live unit succeed."""
    for unit in record.live():
        assert record.report(report_of(record.audit, unit, UnitStarted, 1))
        assert record.report(report_of(record.audit, record.units[unit.id], UnitSucceeded, 2, **facts))


def _to_extract(record: Record) -> None:
    _succeed(record)
    assert record.audit.stage == "extract"


def test_an_audit_runs_from_its_first_taken_unit_through_every_stage_to_one_bundle(record: Record) -> None:
    assert record.audit.status == "queued"
    seen = []
    while record.audit.status in ("queued", "running"):
        _succeed(record)
        seen.append(record.audit.stage)
    assert seen == [*STAGES[1:], "report"]
    assert record.audit.status == "succeeded"
    assert record.audit.bundle_prefix == "projects/prj_1/audits/aud_1/bundle-a1-f1/"
    assert (record.audit.shards, record.audit.n_documents) == (3, 30)
    counts = {stage: sum(1 for unit in record.units.values() if unit.stage == stage) for stage in STAGES}
    assert counts == dict.fromkeys(STAGES, 1) | dict.fromkeys(FAN_OUT, 3)
    assert [kind for kind, _ in record.events if kind != "audit.stage"] == [
        "audit.running",
        "audit.succeeded",
    ]
    assert [data["stage"] for kind, data in record.events if kind == "audit.stage"] == list(STAGES)


def test_stages_have_the_units_that_were_planned_and_those_without_any_are_passed_over(
    record: Record,
) -> None:
    planned = {"directions": 0, "along": 0, "directions_again": 0, "along_again": 2, "lambdas": 0}
    _succeed(record, summary={"units": planned})
    while record.audit.status == "running":
        _succeed(record, summary={"units": {"combine": 0}})  # of another stage: passed over
    assert record.audit.status == "succeeded"
    counts = {stage: sum(1 for unit in record.units.values() if unit.stage == stage) for stage in STAGES}
    assert counts == dict.fromkeys(STAGES, 1) | dict.fromkeys(FAN_OUT, 3) | planned
    told = [(data["stage"], data["units"]) for kind, data in record.events if kind == "audit.stage"]
    assert told == [(stage, counts[stage]) for stage in STAGES if counts[stage]]


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("v", 2),
        ("project_id", "prj_2"),
        ("audit_id", "aud_2"),
        ("attempt", 2),
        ("stage", "extract"),
        ("index", 1),
        ("fence", 2),
        ("fence", 0),
        ("sequence", 0),
    ],
)
def test_a_report_that_differs_from_the_record_changes_nothing(
    record: Record, change: str, value: object
) -> None:
    report = report_of(record.audit, _only(record), UnitStarted, 1)
    before = dict(record.units)
    assert not record.report(renumbered(report, **{change: value}))
    assert record.units == before
    assert record.report(report)


def test_a_report_is_taken_once(record: Record) -> None:
    (unit,) = record.live()
    started = report_of(record.audit, unit, UnitStarted, 1)
    beat = report_of(record.audit, unit, UnitHeartbeat, 2, done=1, total=4)
    assert record.report(started)
    assert not record.report(started)
    assert record.report(beat)
    assert not record.report(beat)
    assert not record.report(report_of(record.audit, unit, UnitStarted, 3))


def test_any_report_of_a_queued_unit_says_that_it_was_taken(record: Record) -> None:
    (unit,) = record.live()
    assert record.report(report_of(record.audit, unit, UnitHeartbeat, 4, done=1, total=4))
    assert record.units[unit.id].state == "leased"
    assert record.audit.status == "running"


def test_a_success_counts_though_every_earlier_report_was_lost(record: Record) -> None:
    (unit,) = record.live()
    assert record.report(report_of(record.audit, unit, UnitSucceeded, 9))
    assert record.audit.stage == "extract"
    assert record.audit.started_at is not None
    assert next(kind for kind, _ in record.events) == "audit.running"


def test_a_heartbeat_renews_the_lease(record: Record) -> None:
    (unit,) = record.live()
    record.report(report_of(record.audit, unit, UnitStarted, 1))
    record.now += timedelta(seconds=50)
    record.report(report_of(record.audit, unit, UnitHeartbeat, 2))
    record.now += timedelta(seconds=50)
    assert on_expiry(record.audit, record.units[unit.id], record.siblings, "lost", record.now, LIMITS) is None


def test_an_expired_lease_raises_the_fence_and_the_old_holder_is_refused(record: Record) -> None:
    (unit,) = record.live()
    record.report(report_of(record.audit, unit, UnitStarted, 1))
    late = report_of(record.audit, unit, UnitSucceeded, 2)
    record.now += timedelta(seconds=61)
    step = on_expiry(record.audit, record.units[unit.id], record.siblings, "taken", record.now, LIMITS)
    assert record.apply(step)
    again = record.units[unit.id]
    assert (again.state, again.fence, again.sequence, again.done) == ("queued", 2, 0, 0)
    assert record.sent[-1] == again
    assert record.events[-1][0] == "audit.unit_retried"
    assert not record.report(late)


def test_a_queued_unit_is_judged_by_where_its_message_is(record: Record) -> None:
    (unit,) = record.live()
    assert on_expiry(record.audit, unit, record.siblings, "lost", record.now, LIMITS) is None, "too early"
    later = record.now + timedelta(seconds=31)
    sent = len(record.sent)

    waiting = on_expiry(record.audit, unit, record.siblings, "waiting", later, LIMITS)
    assert waiting is not None
    assert waiting.send == ()

    lost = on_expiry(record.audit, unit, record.siblings, "lost", later, LIMITS)
    assert lost is not None
    assert [again.fence for again in lost.send] == [1], "it was never run, so it is no new attempt"
    assert record.apply(lost)
    assert len(record.sent) == sent + 1

    taken = on_expiry(record.audit, unit, record.siblings, "taken", later, LIMITS)
    assert taken is not None
    assert [held.state for held in taken.units] == ["leased"]


def test_attempts_are_capped_and_hand_backs_are_excused_to_a_limit(record: Record) -> None:
    _to_extract(record)
    unit = record.live()[0]
    for _ in range(MAX_EXCUSED):
        assert record.report(report_of(record.audit, record.units[unit.id], UnitAbandoned, 1))
    assert record.audit.status == "running"
    failure = {"code": "worker_error", "detail": "no", "retryable": True}
    for _ in range(4):
        assert record.report(report_of(record.audit, record.units[unit.id], UnitFailed, 1, **failure))
    assert record.audit.status == "running"
    assert record.report(report_of(record.audit, record.units[unit.id], UnitFailed, 1, **failure))
    assert record.audit.status == "failed"
    assert record.audit.error is not None
    assert record.audit.error["code"] == "unit_attempts_exhausted"
    assert record.live() == []


def test_a_worker_that_always_hands_back_does_not_loop_for_ever(record: Record) -> None:
    for _ in range(MAX_EXCUSED + LIMITS.max_attempts):
        (unit,) = record.live()
        assert record.report(report_of(record.audit, unit, UnitAbandoned, 1))
    assert record.audit.status == "failed"


def test_bad_input_fails_the_audit_at_once_and_stops_its_other_units(record: Record) -> None:
    _to_extract(record)
    unit = record.live()[1]
    problem = {"file": "train.jsonl", "line": 3, "field": "messages", "message": "is empty"}
    report = report_of(
        record.audit, unit, UnitFailed, 1, code="bad_row", detail="row 3", retryable=False, errors=[problem]
    )
    assert record.report(report)
    assert record.audit.error == {"code": "bad_row", "detail": "row 3", "errors": [problem]}
    assert sorted(unit.state for unit in record.units.values() if unit.stage == "extract") == [
        "failed",
        "stopped",
        "stopped",
    ]
    assert record.events[-1] == ("audit.failed", record.audit.error)


def test_nothing_to_audit_has_a_code_of_its_own(record: Record) -> None:
    (unit,) = record.live()
    report = report_of(
        record.audit, unit, UnitFailed, 1, code="x", detail="d", retryable=False, nothing_to_audit=True
    )
    assert record.report(report)
    assert record.audit.error is not None
    assert record.audit.error["code"] == "nothing_to_audit"


def test_a_cancel_stops_queued_units_at_once_and_waits_for_leased_ones(record: Record) -> None:
    _to_extract(record)
    held = record.live()[0]
    record.report(report_of(record.audit, held, UnitStarted, 1))
    assert record.apply(on_cancel(record.audit, record.siblings, record.now))
    assert record.audit.status == "canceling"
    assert [unit.id for unit in record.live()] == [held.id]
    record.now += timedelta(seconds=40)
    assert record.report(report_of(record.audit, held, UnitHeartbeat, 2))
    record.now += timedelta(seconds=21)
    step = on_expiry(record.audit, record.units[held.id], record.siblings, "taken", record.now, LIMITS)
    assert record.apply(step), "a heartbeat does not hold up a cancel"
    assert record.audit.status == "canceled"
    assert record.endings == 1


@pytest.mark.parametrize("kind", [UnitSucceeded, UnitAbandoned, UnitFailed])
def test_whatever_a_unit_says_last_a_canceled_audit_ends_as_canceled(record: Record, kind: type) -> None:
    (unit,) = record.live()
    record.report(report_of(record.audit, unit, UnitStarted, 1))
    record.apply(on_cancel(record.audit, record.siblings, record.now))
    facts = {"code": "x", "detail": "y", "retryable": False} if kind is UnitFailed else {}
    assert record.report(report_of(record.audit, unit, kind, 2, **facts))
    assert record.audit.status == "canceled"
    assert record.audit.error is None


def test_an_audit_that_has_ended_stays_as_it_is(record: Record) -> None:
    assert record.apply(fail(record.audit, record.siblings, {"code": "c", "detail": "d"}, record.now))
    assert on_cancel(record.audit, record.siblings, record.now) is None
    assert fail(record.audit, record.siblings, {"code": "c", "detail": "d"}, record.now) is None
    assert begin(record.audit, record.now, LIMITS, record.unit_id) is None


@pytest.mark.parametrize(
    "facts",
    [
        {"shards": None},
        {"shards": 0},
        {"shards": 10**9, "documents": 10**9},
        {"shards": 5, "documents": 4},
        {"summary": {"warnings": "one"}},
        {"summary": {"n_atoms": True}},
        {"summary": {"units": [1]}},
        {"summary": {"units": {"along": 4}}},  # of three shards
        {"summary": {"units": {"directions": 2}}},
        {"summary": {"units": {"along": -1}}},
        {"summary": {"units": {"along": True}}},
        {"summary": {"units": {"along": 1.0}}},
        {"summary": {"units": {"report": 0}}},
        {"summary": {"units": {"extract": 0}}},
        {"summary": {"units": {"validate": 1}}},
        {"summary": {"units": {"stroll": 1}}},
        {"summary": {"plan": [1]}},
        {"summary": {"plan": {"n_tokens": "many"}}},
        {"summary": {"plan": {"n_tokens": -1}}},
        {"summary": {"plan": {"n_tokens": True}}},
        {"summary": {"plan": {"n_tokens": 2**60}}},
        {"summary": {"plan": {"<b>": 1}}},
        {"summary": {"plan": {"bytes": {"deep": {"deeper": 1}}}}},
        {"summary": {"plan": {f"n_{number}": 1 for number in range(99)}}},
    ],
)
def test_a_success_that_makes_no_sense_fails_the_audit(record: Record, facts: dict[str, object]) -> None:
    (unit,) = record.live()
    assert record.report(report_of(record.audit, unit, UnitSucceeded, 1, **facts))
    assert record.audit.status == "failed"
    assert record.audit.error is not None
    assert record.audit.error["code"] == "bad_report"


def test_what_is_planned_is_told_once_before_anything_is_extracted(record: Record) -> None:
    plan = {"n_tokens": 2**40, "gradient_bytes_by_setting": {"float32": 2**50, "none": 0}}
    _succeed(record, summary={"plan": plan, "warnings": ["one"]})
    assert [kind for kind, _ in record.events] == [
        "audit.running",
        "audit.stage",
        "audit.planned",
        "audit.warning",
        "audit.stage",
    ]
    assert record.events[2][1] == plan
    _succeed(record, summary={"plan": plan})  # of another stage: passed over
    assert [kind for kind, _ in record.events].count("audit.planned") == 1


def test_what_a_worker_says_is_cut_to_size(record: Record) -> None:
    (unit,) = record.live()
    warnings = ["w\x00" + "x" * 10_000] * 1_000
    beat = report_of(record.audit, unit, UnitHeartbeat, 1, done=99, total=-5, unit="\x1b[31m" * 99)
    assert record.report(beat)
    held = record.units[unit.id]
    assert (held.done, held.total, held.progress_unit) == (0, 0, "steps")
    assert record.report(report_of(record.audit, unit, UnitSucceeded, 2, summary={"warnings": warnings}))
    assert len(record.audit.warnings) == 50
    assert all(len(warning) <= 2_000 and "\x00" not in warning for warning in record.audit.warnings)
