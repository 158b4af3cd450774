"""Evaluations: asking, listing, reading and deleting them, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from atomscope.errors import AtomscopeError
from atomscope.types.attribution import MAX_QUERY_DEPTH
from atomscope.types.evaluation import (
    Answer,
    Chosen,
    Cost,
    CostPoint,
    EvaluationPoint,
    EvaluationQuery,
    EvaluationResult,
    Measure,
    RandomDirections,
    TargetEvaluation,
)
from atomscope.types.jobs import JobKind, result_key
from atomscope_service.api import jobs
from atomscope_service.db.models import JobRow
from atomscope_service.db.repositories import Repositories
from atomscope_service.ids import new_id
from atomscope_service.job_results import BadResult, read_result
from tests.service.bundles import ESCAPES
from tests.service.deployment import Tenant

TARGET = {"target": "behaviour:3", "detector": {"type": "named", "name": "yes_no"}}
QUERY: dict[str, Any] = {"targets": [TARGET]}
COST = Cost(kl=0.1, perplexity=9.0)
SHARE = Measure(value=0.5, low=0.3, high=0.7, n=24, hits=12)
CHANCE = RandomDirections(match="norm", shifts=[0.0] * 20, costs=[0.1] * 20, percentile_95=0.1, p_value=0.01)
RESULT = EvaluationResult(
    targets=[
        TargetEvaluation(
            target="behaviour:3",
            name=None,
            verdict="steers",
            up=Chosen(strength=0.2, shift=0.4, kl=0.1, verdict="steers"),
            down=None,
            auto_up=0.2,
            auto_down=None,
            gain=0.1,
            curve=[CostPoint(strength=0.2, cost=COST)],
            baseline_inviting=SHARE,
            baseline_neutral=SHARE,
            baseline=SHARE,
            points=[
                EvaluationPoint(
                    strength=0.2,
                    cost=COST,
                    inviting=SHARE,
                    neutral=SHARE,
                    overall=SHARE,
                    shift=0.4,
                    selection_shift=0.4,
                    within_budget=True,
                    equal_norm=CHANCE,
                    equal_kl=None,
                    unrelated=None,
                    q_value=0.02,
                    verdict="steers",
                )
            ],
            unrelated=None,
            answers=[Answer(kind="neutral", prompt=ESCAPES, base="no", up="yes", down=None)],
            others={"behaviour:1": -0.1},
        )
    ],
    baseline_cost=COST,
    neutral_documents=16,
    n_neutral_tokens=400,
    seconds=90.0,
)


@pytest.fixture
def audit(tenant: Tenant) -> str:
    return tenant.insert_audit(status="succeeded", bundle_prefix="projects/p/audits/a/bundle-a1-f1/")


def url(audit: str) -> str:
    return f"/v1/audits/{audit}/evaluations"


def asked(tenant: Tenant, audit: str, **query: Any) -> dict[str, Any]:
    answer = tenant.post(url(audit), json=QUERY | query)
    assert answer.status_code == 202, answer.text
    return answer.json()


def finish(tenant: Tenant, audit: str, job_id: str, content: bytes | None = None) -> None:
    """Do a job as worker and control would."""
    key = result_key(tenant.project_id, audit, job_id, 1)
    tenant.deployment.store.put_bytes(key, msgspec.json.encode(RESULT) if content is None else content)
    ended = datetime.now(UTC)
    tenant.change(JobRow, job_id, status="succeeded", result_key=key, started_at=ended, ended_at=ended)


# --------------------------------------------------------------------- asking


def test_an_evaluation_is_queued_with_its_query_filled_in(tenant: Tenant, audit: str) -> None:
    answer = tenant.post(url(audit), json=QUERY)
    assert answer.status_code == 202
    made = answer.json()
    assert answer.headers["Location"] == f"{url(audit)}/{made['id']}"
    assert made["id"].startswith("evl_")
    assert made["query"] == msgspec.to_builtins(msgspec.convert(QUERY, EvaluationQuery))
    told = {name: made[name] for name in ("object", "audit", "status", "progress", "result", "error")}
    assert told == {
        "object": "evaluation",
        "audit": audit,
        "status": "queued",
        "progress": None,
        "result": None,
        "error": None,
    }
    assert ("job_added", tenant.project_id, made["id"]) in tenant.deployment.queue.told
    assert tenant.get(answer.headers["Location"]).json() == made


def test_a_whole_query_is_kept_as_it_was_given(tenant: Tenant, audit: str) -> None:
    messages = [{"role": "user", "content": "ünï", "n": 2**70}]
    prompts = [{"prompt": "a", "completion": "b"}, {"messages": messages, "completion": "c"}]
    targets = [
        {"target": "7", "detector": {"type": "log-probability"}, "inviting": prompts, "name": "one"},
        {"target": "behaviour:2", "detector": {"type": "pattern", "pattern": r"^\s*[-*] ", "at_least": 2}},
        {"target": "atom:9", "detector": {"type": "length", "at_least": 1, "at_most": 1}},
        {"target": "10", "detector": {"type": "judge", "question": "Is it polite?"}},
        {"target": "11"},
    ]
    query = {
        "targets": targets,
        "strengths": [-0.5, 1.5],
        "neutral": prompts,
        "power": "+1/2",
        "perplexity_budget": 1.5,
        "sampling": {"temperature": 0.7},
        "random_at": "chosen",
        "seed": 2**31 - 1,
    }
    answer = tenant.post(url(audit), json=query)
    assert answer.status_code == 202, answer.text
    shown = tenant.get(answer.headers["Location"]).json()["query"]
    assert shown == msgspec.to_builtins(msgspec.convert(query, EvaluationQuery))
    assert shown["neutral"][1]["messages"] == messages
    assert shown["targets"][1]["detector"]["type"] == "pattern"


def test_a_broker_that_is_down_does_not_lose_the_query(tenant: Tenant, audit: str) -> None:
    tenant.deployment.queue.failure = AtomscopeError("no broker")
    try:
        made = asked(tenant, audit)
    finally:
        tenant.deployment.queue.failure = None
    assert tenant.get(f"{url(audit)}/{made['id']}").json()["status"] == "queued"


def detected_by(**detector: Any) -> dict[str, Any]:
    return {"targets": [{"target": "7", "detector": detector}]}


BARE = [{"prompt": "a"}] * 2
TWO = [TARGET, {"target": "1"}]
DEEP: Any = []
for _ in range(MAX_QUERY_DEPTH):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "targets"),
        ({"targets": []}, "targets"),
        ({"targets": TARGET}, "targets"),
        ({"targets": [{"target": str(index)} for index in range(21)]}, "targets"),
        ({"targets": [{"target": "atom"}]}, "names no atom and no behaviour"),
        ({"targets": [{"target": "7\n"}]}, "names no atom and no behaviour"),
        ({"targets": [{"target": "behavior:3"}]}, "write 7, atom:7 or behaviour:3"),
        ({"targets": [{"target": 7}]}, "targets[0].target"),
        ({"targets": [{"target": "07"}]}, "names no atom"),
        ({"targets": [TARGET, TARGET]}, "given twice"),
        ({"targets": [{"target": "7"}, {"target": "atom:7"}]}, "given twice"),
        ({"targets": [{"target": "7", "surprise": 1}]}, "targets[0].surprise"),
        ({**QUERY, "surprise": 1}, "surprise"),
        (detected_by(type="nope"), "detector.type"),
        (detected_by(name="yes_no"), "detector"),
        (detected_by(type="named", name="maybe"), "bulleted_list"),
        (detected_by(type="pattern"), "pattern"),
        (detected_by(type="pattern", pattern="("), "no regular expression"),
        (detected_by(type="pattern", pattern=""), "pattern"),
        (detected_by(type="pattern", pattern="a" * 1001), "pattern"),
        (detected_by(type="pattern", pattern="(?s-i:a)(?si)"), "`ignore_case` takes the place"),
        (detected_by(type="pattern", pattern="[a]" * 41), "more than 40 sets"),
        (detected_by(type="pattern", pattern="a{99999999999}"), "no regular expression"),
        (detected_by(type="pattern", pattern="a", at_least=0), "at_least"),
        (detected_by(type="length", at_least=5, at_most=4), "no answer has such a length"),
        (detected_by(type="length", at_most=-1), "at_most"),
        (detected_by(type="judge", question=""), "question"),
        (detected_by(type="judge", question="a", url="http://elsewhere"), "url"),
        ({"targets": [{"target": "7", "inviting": [{"prompt": "a"}]}]}, "inviting"),
        ({"targets": [{"target": "7", "inviting": [{"prompt": "a"}, {}]}]}, "`prompt` or `messages`"),
        (
            {"targets": [{"target": "7", "detector": {"type": "log-probability"}, "inviting": BARE}]},
            "`inviting[0]` has no `completion`",
        ),
        (
            {**detected_by(type="log-probability"), "neutral": [{"prompt": "a", "completion": ""}] * 2},
            "`neutral[0]` has no `completion`",
        ),
        ({**QUERY, "neutral": [{"messages": []}] * 2}, "neutral[0].messages"),
        ({**QUERY, "neutral": [{"messages": [{"x": DEEP}]}] * 2}, "nested deeper"),
        ({**QUERY, "neutral": [{"prompt": "a\0"}] * 2}, "U+0000"),
        ({**QUERY, "neutral": [{"prompt": "a" * 100_001}] * 2}, "prompt"),
        ({**QUERY, "strengths": []}, "strengths"),
        ({**QUERY, "strengths": [0.1, 0]}, "other than 0"),
        ({**QUERY, "strengths": [0.1, 0.1]}, "given twice"),
        ({**QUERY, "strengths": ["0.1"]}, "strengths[0]"),
        ({**QUERY, "strengths": "often"}, "auto"),
        ({**QUERY, "strengths": [0.1 * index for index in range(1, 34)]}, "strengths"),
        ({**QUERY, "kl_budget": 0}, "kl_budget"),
        ({**QUERY, "perplexity_budget": 1}, "perplexity_budget"),
        ({**QUERY, "prompts": 3}, "prompts"),
        ({**QUERY, "random_directions": 19}, "random_directions"),
        ({**QUERY, "sampling": {"temperature": -1}}, "sampling.temperature"),
        ({**QUERY, "sampling": {"max_new_tokens": 2048}, "answers": 20, "targets": TWO}, "tokens to keep"),
        ({**QUERY, "unit": "metres"}, "alpha"),
        ({**QUERY, "power": "1/2"}, "power"),
        ({**QUERY, "seed": -1}, "seed"),
    ],
)  # fmt: skip
def test_what_is_no_query_is_refused(tenant: Tenant, audit: str, body: dict[str, Any], told: str) -> None:
    answer = tenant.post(url(audit), json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), answer.text
    assert told in answer.text
    assert tenant.get(url(audit)).json()["data"] == []


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999", b"-1e999", b"null"])
@pytest.mark.parametrize("field", ["strengths", "kl_budget"])
def test_numbers_that_are_none_are_refused(tenant: Tenant, audit: str, field: str, number: bytes) -> None:
    given = b"[%s]" % number if field == "strengths" else number
    body = b'{"targets": [{"target": "7"}], "%s": %s}' % (field.encode(), given)
    answer = tenant.post(url(audit), content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


def test_more_random_directions_than_a_result_holds_are_refused(tenant: Tenant, audit: str) -> None:
    targets = [{"target": str(index)} for index in range(20)]
    answer = tenant.post(url(audit), json={"targets": targets, "random_directions": 500})
    assert answer.status_code == 400
    assert "20 targets at 6 strengths beside 500 random directions" in answer.text
    assert tenant.post(url(audit), json={"targets": targets, "random_directions": 416}).status_code == 202


def test_a_body_of_over_a_mebibyte_is_refused(tenant: Tenant, audit: str) -> None:
    answer = tenant.post(url(audit), json=QUERY | {"neutral": [{"prompt": "a" * 100_000}] * 11})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("status", ["queued", "running", "canceling", "failed", "canceled"])
def test_only_an_audit_that_has_succeeded_is_evaluated(tenant: Tenant, status: str) -> None:
    answer = tenant.post(url(tenant.insert_audit(status=status)), json=QUERY)
    assert (answer.status_code, answer.json()["code"]) == (409, "audit_not_succeeded")
    assert status in answer.json()["detail"]


def test_too_many_that_wait_are_refused_until_one_has_ended(
    tenant: Tenant, audit: str, other: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(jobs.MOST_LIVE, "evaluation", 2)
    first, second = asked(tenant, audit), asked(tenant, audit)
    answer = tenant.post(url(audit), json=QUERY)
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_evaluations")
    assert int(answer.headers["Retry-After"]) > 0
    asked(other, other.insert_audit(status="succeeded"))  # another project's do not count
    attribution = tenant.post(f"/v1/audits/{audit}/attributions", json={"prompt": "a", "completion": "b"})
    assert attribution.status_code == 202, "each kind has a limit of its own"
    finish(tenant, audit, first["id"])
    asked(tenant, audit)
    assert tenant.delete(f"{url(audit)}/{second['id']}").status_code == 200
    asked(tenant, audit)


def test_a_repeated_request_asks_once(tenant: Tenant, audit: str) -> None:
    headers = {"Idempotency-Key": "evaluate-1"}
    first, second = (tenant.post(url(audit), json=QUERY, headers=headers) for _ in range(2))
    assert first.json() == second.json()
    assert second.headers["Location"] == first.headers["Location"]
    assert len(tenant.get(url(audit)).json()["data"]) == 1
    other = tenant.post(url(audit), json=QUERY | {"seed": 1}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


# -------------------------------------------------------------------- reading


def test_a_result_is_shown_of_one_and_left_out_of_lists(tenant: Tenant, audit: str) -> None:
    made = asked(tenant, audit)
    finish(tenant, audit, made["id"])
    answer = tenant.get(f"{url(audit)}/{made['id']}")
    shown = answer.json()
    assert shown["status"] == "succeeded"
    assert shown["result"] == msgspec.to_builtins(RESULT)
    assert shown["ended_at"] is not None
    assert tenant.get(url(audit)).json()["data"] == [shown | {"result": None}]
    again = tenant.get(f"{url(audit)}/{made['id']}", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_progress_is_shown_while_it_runs_and_changes_the_etag(tenant: Tenant, audit: str) -> None:
    made = asked(tenant, audit)
    path = f"{url(audit)}/{made['id']}"
    before = tenant.get(path).headers["ETag"]
    tenant.change(JobRow, made["id"], status="running", done=2, total=500)
    shown = tenant.get(path, headers={"If-None-Match": before})
    assert shown.status_code == 200
    assert shown.json()["progress"] == {"done": 2, "total": 500, "unit": "passes"}


def test_the_error_of_a_failed_one_is_shown(tenant: Tenant, audit: str) -> None:
    made = asked(tenant, audit)
    error = {"code": "unknown_target", "detail": "there is no behaviour 3", "errors": []}
    tenant.change(JobRow, made["id"], status="failed", error=error, ended_at=datetime.now(UTC))
    assert tenant.get(f"{url(audit)}/{made['id']}").json()["error"] == error
    assert tenant.get(url(audit)).json()["data"][0]["error"] == error


@pytest.mark.parametrize("content", [b"{", b"{}", b" " * (9 * 2**20)], ids=["cut", "empty", "large"])
def test_a_result_that_was_changed_in_the_store_is_told_of(
    tenant: Tenant, audit: str, content: bytes
) -> None:
    made = asked(tenant, audit)
    finish(tenant, audit, made["id"], content)
    answer = tenant.get(f"{url(audit)}/{made['id']}")
    assert (answer.status_code, answer.json()["code"]) == (500, "result_unreadable")
    assert tenant.get(url(audit)).status_code == 200


@pytest.mark.parametrize(("kind", "other"), [("evaluation", "attribution"), ("attribution", "evaluation")])
def test_a_result_of_one_kind_is_none_of_the_other(
    tenant: Tenant, audit: str, kind: JobKind, other: JobKind
) -> None:
    made = asked(tenant, audit)
    finish(tenant, audit, made["id"])
    key = result_key(tenant.project_id, audit, made["id"], 1)
    if kind == "evaluation":
        assert read_result(tenant.deployment.store, key, kind) == RESULT
    else:
        with pytest.raises(BadResult):
            read_result(tenant.deployment.store, key, kind)


def test_evaluations_and_attributions_are_apart(tenant: Tenant, audit: str) -> None:
    made = asked(tenant, audit)
    attributions = f"/v1/audits/{audit}/attributions"
    attribution = tenant.post(attributions, json={"prompt": "a", "completion": "b"}).json()
    assert [item["id"] for item in tenant.get(url(audit)).json()["data"]] == [made["id"]]
    assert [item["id"] for item in tenant.get(attributions).json()["data"]] == [attribution["id"]]
    for path in (f"{url(audit)}/{attribution['id']}", f"{attributions}/{made['id']}"):
        for method in ("GET", "DELETE"):
            answer = tenant.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_lists_are_paged_newest_first(tenant: Tenant, audit: str) -> None:
    ids = [asked(tenant, audit)["id"] for _ in range(3)]
    asked(tenant, tenant.insert_audit(status="succeeded"))
    first = tenant.get(f"{url(audit)}?limit=2").json()
    assert [item["id"] for item in first["data"]] == [ids[2], ids[1]]
    second = tenant.get(f"{url(audit)}?limit=2&cursor={first['next']}").json()
    assert ([item["id"] for item in second["data"]], second["has_more"]) == ([ids[0]], False)
    elsewhere = f"/v1/audits/{audit}/attributions"
    assert tenant.get(f"{elsewhere}?cursor={first['next']}").json()["code"] == "invalid_cursor"


def test_an_evaluation_is_not_found_under_another_audit(tenant: Tenant, audit: str) -> None:
    made = asked(tenant, audit)
    elsewhere = url(tenant.insert_audit(status="succeeded"))
    for method in ("GET", "DELETE"):
        for path in (f"{elsewhere}/{made['id']}", f"{url(audit)}/{new_id('evl')}", f"{url(audit)}/x"):
            answer = tenant.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert tenant.get(f"{url(audit)}/{made['id']}").status_code == 200


def test_an_unknown_audit_is_not_found(tenant: Tenant) -> None:
    for answer in (tenant.get(url("aud_0")), tenant.post(url("aud_0"), json=QUERY)):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


# ------------------------------------------------------------------- deleting


@pytest.mark.parametrize("status", ["queued", "running", "succeeded", "failed"])
def test_deleting_takes_the_result_along_whatever_the_state(tenant: Tenant, audit: str, status: str) -> None:
    made = asked(tenant, audit)
    tenant.change(JobRow, made["id"], status=status)
    path = f"{url(audit)}/{made['id']}"
    assert tenant.delete(path).json() == {"id": made["id"], "deleted": True}
    assert tenant.get(path).status_code == 404
    assert tenant.delete(path).status_code == 404
    with tenant.deployment.database.read() as session:
        gone = [row.prefix for row in Repositories(session, tenant.project_id).deletions.page(limit=100)]
    assert gone == [f"projects/{tenant.project_id}/audits/{audit}/jobs/{made['id']}/"]
    assert ("deletions_added",) in tenant.deployment.queue.told


# -------------------------------------------------------------------- OpenAPI


def test_the_document_tells_the_detectors_apart(tenant: Tenant) -> None:
    schemas = tenant.get("/schema/openapi.json").json()["components"]["schemas"]
    assert schemas["EvaluationCreate"]["additionalProperties"] is False
    assert schemas["EvaluationTarget"]["additionalProperties"] is False
    tags = {
        name: schemas[name]["properties"]["type"]["const"] for name in schemas if name.endswith("Detector")
    }
    assert tags == {
        "PatternDetector": "pattern",
        "NamedDetector": "named",
        "LengthDetector": "length",
        "JudgeDetector": "judge",
        "LogProbabilityDetector": "log-probability",
    }
