"""Messages between control and workers: told apart by type, versioned, and refused when they are odd."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from atomscope.types.work import (
    FAN_OUT,
    MESSAGE_VERSION,
    PLANNED,
    STAGES,
    Report,
    Stage,
    UnitAbandoned,
    UnitFailed,
    UnitHeartbeat,
    UnitOrder,
    UnitReport,
    UnitStarted,
    UnitSucceeded,
    cancel_key,
    claim_key,
    live_fence_key,
    order_id,
    redis_url,
    unit_count,
)

WHO: dict[str, Any] = {
    "project_id": "prj_1", "audit_id": "aud_1", "attempt": 1, "unit_id": "unit_1", "stage": "extract",
    "index": 3, "fence": 2, "sequence": 5, "worker": "host:1",
}  # fmt: skip
REPORTS: dict[str, UnitReport] = {
    "started": UnitStarted(**WHO),
    "heartbeat": UnitHeartbeat(**WHO, done=3, total=9, unit="documents"),
    "succeeded": UnitSucceeded(**WHO, shards=2, documents=9, summary={"warnings": ["w"]}),
    "failed": UnitFailed(**WHO, code="bad_row", detail="line 4", retryable=False, errors=[{"line": 4}]),
    "abandoned": UnitAbandoned(**WHO),
}
ORDER = UnitOrder(
    project_id="prj_1",
    audit_id="aud_1",
    attempt=1,
    unit_id="unit_1",
    stage="project",
    index=0,
    fence=1,
    work_prefix="projects/prj_1/audits/aud_1/a1/",
    spec_key="projects/prj_1/audits/aud_1/a1/spec.json",
    winners={"validate": [1], "extract": [1, 2]},
    heartbeat_seconds=1.0,
)


@pytest.mark.parametrize("kind", REPORTS)
def test_a_report_is_told_by_its_type_and_comes_back_exactly(kind: str) -> None:
    message = msgspec.json.decode(msgspec.json.encode(REPORTS[kind]))
    assert (message["type"], message["v"]) == (kind, MESSAGE_VERSION)
    assert msgspec.convert(message, Report) == REPORTS[kind]


def test_an_order_comes_back_exactly() -> None:
    message = msgspec.json.decode(msgspec.json.encode(ORDER))
    assert message["v"] == MESSAGE_VERSION
    assert msgspec.convert(message, UnitOrder, strict=True) == ORDER


@pytest.mark.parametrize(
    "change",
    [
        {"type": "finished"},
        {"stage": "train"},
        {"fence": "2"},
        {"fence": 2.5},
        {"sequence": None},
        {"note": 1},
        {"audit_id": 7},
    ],
    ids=repr,
)
def test_a_report_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    message = msgspec.to_builtins(REPORTS["heartbeat"])
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(message | change, Report)


@pytest.mark.parametrize("field", [*WHO, "type"])
def test_a_report_says_wholly_of_whom_it_is(field: str) -> None:
    message = msgspec.to_builtins(REPORTS["started"])
    del message[field]
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert(message, Report)


@pytest.mark.parametrize(
    "change", [{"winners": {"extract": ["1"]}}, {"stage": "train"}, {"shell": "x"}], ids=repr
)
def test_an_order_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(msgspec.to_builtins(ORDER) | change, UnitOrder, strict=True)


def test_what_fans_out_comes_after_the_plan_is_made() -> None:
    assert STAGES[0] == "validate"
    assert STAGES[-1] == "report"
    assert len(set(STAGES)) == len(STAGES)
    assert set(STAGES[1:]) > FAN_OUT
    assert set(STAGES[1:-1]) > PLANNED


def test_keys_differ_by_unit_fence_and_purpose() -> None:
    keys = [
        live_fence_key("u1"), live_fence_key("u2"), cancel_key("u1"), claim_key("u1", 1), claim_key("u1", 2),
        claim_key("u2", 1), claim_key("u1", 11), order_id("u1", 1), order_id("u1", 11), order_id("u2", 1),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("broker", "read"),
    [
        ("redis://:pw@host:6379/0", "redis://:pw@host:6379/0"),
        ("rediss://host/1", "rediss://host/1"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
        ("redis+socket:///run/valkey.sock", "unix:///run/valkey.sock"),
        ("redis+socket:///run/valkey.sock?virtual_host=3", "unix:///run/valkey.sock?db=3"),
    ],
)
def test_celerys_socket_address_is_turned_into_redis_pys(broker: str, read: str) -> None:
    assert redis_url(broker) == read


def test_a_stage_has_one_unit_or_one_a_shard_or_what_is_planned() -> None:
    assert unit_count("dictionary", 3, {}) == 1
    assert unit_count("extract", 3, {}) == 3
    planned: dict[Stage, int] = {"along": 2, "directions": 0}
    assert [unit_count(stage, 3, planned) for stage in ("along", "directions", "along_again")] == [2, 0, 3]
