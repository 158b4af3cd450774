"""Messages of jobs between control and workers, and the query that one carries."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from atomscope.bundle.layout import audit_prefix
from atomscope.types.attribution import MAX_QUERY_DEPTH, AttributionQuery
from atomscope.types.jobs import (
    JOB_MESSAGE_VERSION,
    AnyJobReport,
    JobAbandoned,
    JobFailed,
    JobHeartbeat,
    JobOrder,
    JobStarted,
    JobSucceeded,
    job_prefix,
    result_key,
)

WHO: dict[str, Any] = {
    "project_id": "prj_1",
    "job_id": "atr_1",
    "fence": 2,
    "sequence": 5,
    "worker": "host:1",
}
REPORTS: dict[str, AnyJobReport] = {
    "started": JobStarted(**WHO),
    "heartbeat": JobHeartbeat(**WHO, done=3, total=9),
    "succeeded": JobSucceeded(**WHO),
    "failed": JobFailed(**WHO, code="bad_row", detail="no role", retryable=False, errors=[{"line": 1}]),
    "abandoned": JobAbandoned(**WHO),
}


@pytest.mark.parametrize("name", REPORTS)
def test_reports_are_told_apart_by_type(name: str) -> None:
    sent = msgspec.to_builtins(REPORTS[name])
    assert (sent["type"], sent["v"]) == (name, JOB_MESSAGE_VERSION)
    assert msgspec.convert(sent, AnyJobReport, strict=True) == REPORTS[name]


@pytest.mark.parametrize(
    "change", [{"type": "exploded"}, {"surprise": 1}, {"fence": "2"}, {"sequence": None}, {"worker": 5}]
)
@pytest.mark.parametrize("name", REPORTS)
def test_a_report_that_is_odd_is_refused(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(msgspec.to_builtins(REPORTS[name]) | change, AnyJobReport, strict=True)


def test_an_order_survives_the_broker_with_any_query() -> None:
    query = AttributionQuery(messages=[{"role": "user", "content": None, "n": 2**70}], documents=0)
    order = JobOrder(
        project_id="prj_1",
        audit_id="aud_1",
        job_id="atr_1",
        kind="attribution",
        fence=1,
        bundle_prefix="b/",
        result_key="r",
        request=msgspec.to_builtins(query),
        heartbeat_seconds=1.0,
    )
    sent = msgspec.json.decode(msgspec.json.encode(order))
    received = msgspec.convert(sent, JobOrder, strict=True)
    assert received == order
    assert msgspec.convert(received.request, AttributionQuery) == query


def test_results_lie_under_their_fence_and_go_with_job_and_audit() -> None:
    keys = {result_key("prj_1", "aud_1", "atr_1", fence) for fence in (1, 2)}
    assert len(keys) == 2
    assert all(key.startswith(job_prefix("prj_1", "aud_1", "atr_1")) for key in keys)
    assert job_prefix("prj_1", "aud_1", "atr_1").startswith(audit_prefix("prj_1", "aud_1"))
    assert job_prefix("prj_1", "aud_1", "atr_1").endswith("/")


# ------------------------------------------------------------------- the query


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": "", "completion": "c"},
        {"prompt": "p", "completion": " "},
        {"messages": [{}]},
        {"messages": [{"x": None}] * 1024},
    ],
)
def test_what_may_be_asked(given: dict[str, Any]) -> None:
    query = msgspec.convert(given, AttributionQuery)
    assert (query.exact, query.documents) == (False, 20)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"prompt": "p"},
        {"completion": "c"},
        {"prompt": "p", "completion": ""},
        {"prompt": None, "completion": "c"},
        {"prompt": "p", "messages": [{}]},
        {"messages": []},
        {"messages": [{}] * 1025},
        {"messages": {}},
    ],
)
def test_neither_both_or_half_of_a_query_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(given, AttributionQuery)


@pytest.mark.parametrize("kind", ["list", "object"])
def test_messages_are_nested_to_a_limit(kind: str) -> None:
    def nested(levels: int) -> dict[str, Any]:
        value: Any = "text"
        for _ in range(levels):
            value = [value] if kind == "list" else {"x": value}
        return {"messages": [{"content": value}]}

    AttributionQuery(**nested(MAX_QUERY_DEPTH - 2))
    with pytest.raises(ValueError, match="nested deeper"):
        AttributionQuery(**nested(MAX_QUERY_DEPTH - 1))
