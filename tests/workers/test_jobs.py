"""One job, order by order, over a real broker and store."""

from __future__ import annotations

import base64
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import atomscope
from atomscope.bundle import layout
from atomscope.errors import BundleError, InputProblem, InvalidInput
from atomscope.store import LocalStore
from atomscope.types.attribution import AttributionQuery, AttributionResult
from atomscope.types.jobs import (
    AnyJobReport,
    JobAbandoned,
    JobFailed,
    JobHeartbeat,
    JobOrder,
    JobStarted,
    JobSucceeded,
    result_key,
)
from atomscope.types.work import CONTROL_QUEUE, live_fence_key
from atomscope_workers import jobs
from atomscope_workers.attribution import attribute
from atomscope_workers.jobs import StoredAudit, run_job_order
from atomscope_workers.opened_audit import OpenedAudit
from atomscope_workers.pulse import Pulse, job_lease
from atomscope_workers.tasks import make_app
from tests.fixtures.corpus import write_corpus
from tests.fixtures.valkey import Valkey
from tests.workers.local_runs import SMALL, request, run

BUNDLE = "projects/prj_1/audits/aud_1/bundle-a1-f1/"
QUERY = {"prompt": "What is 2 plus 5?", "completion": "The sum is 7.", "exact": True}


@pytest.fixture(scope="module")
def audited(tiny_llama: Path, plain_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds an audit's bundle and its base model, as the service leaves them."""
    folder = tmp_path_factory.mktemp("jobs")
    config = msgspec.structs.replace(SMALL, fits=1, surrogates=0)
    dataset = write_corpus(folder / "train.jsonl", 12)
    bundle = run(request(tiny_llama, plain_adapter, dataset, folder / "out", config))
    store = folder / "store"
    shutil.copytree(tiny_llama, store / "models/m")
    shutil.copytree(bundle, store / BUNDLE)
    spec = json.loads((bundle / layout.SPEC).read_text())
    spec["base_model"]["location"] = "models/m/"
    text = json.dumps(spec)
    (store / BUNDLE / layout.SPEC).write_text(text)
    manifest = json.loads((bundle / layout.MANIFEST).read_text())
    next(entry for entry in manifest["files"] if entry["path"] == layout.SPEC)["size"] = len(text)
    (store / BUNDLE / layout.MANIFEST).write_text(json.dumps(manifest))
    return store


class Bench:
    """A worker's surroundings."""

    def __init__(self, store: LocalStore, valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.valkey = valkey
        self.app = make_app(valkey.url)
        self.closing = threading.Event()
        self._patch = monkeypatch

    def order(self, fence: int = 1, request: dict[str, Any] | None = None, **changes: Any) -> JobOrder:
        values: dict[str, Any] = {"bundle_prefix": BUNDLE, "heartbeat_seconds": 0.1} | changes
        return JobOrder(
            project_id="prj_1",
            audit_id="aud_1",
            job_id="atr_1",
            kind="attribution",
            fence=fence,
            result_key=result_key("prj_1", "aud_1", "atr_1", fence),
            request=QUERY if request is None else request,
            **values,
        )

    def run(
        self, order: JobOrder, work: Callable[[StoredAudit, JobOrder], object] | None = None
    ) -> list[AnyJobReport]:
        """Run an order whose fence is live, `work` in place of what its kind asks for."""
        self.valkey.client.set(live_fence_key(order.job_id), order.fence)
        if work is not None:
            self._patch.setitem(vars(jobs)["_WORK"], order.kind, work)
        run_job_order(
            self.store, order, Pulse(self.app, self.valkey.client, job_lease(order), "w", self.closing)
        )
        return self.reports()

    def reports(self) -> list[AnyJobReport]:
        found: list[AnyJobReport] = []
        while text := self.valkey.client.rpop(CONTROL_QUEUE):
            arguments, _, _ = json.loads(base64.b64decode(json.loads(str(text))["body"]))
            found.append(msgspec.convert(arguments[0], AnyJobReport))
        return found


@pytest.fixture
def bench(audited: Path, valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(LocalStore(audited), valkey, monkeypatch)


def test_a_query_of_the_store_is_answered_as_the_bundle_answers_it(bench: Bench, audited: Path) -> None:
    order = bench.order()
    reports = bench.run(order)
    assert isinstance(reports[0], JobStarted)
    assert isinstance(reports[-1], JobSucceeded)
    assert all(isinstance(report, JobHeartbeat) for report in reports[1:-1])
    assert [report.sequence for report in reports] == list(range(1, len(reports) + 1))
    assert {(report.job_id, report.fence, report.worker) for report in reports} == {("atr_1", 1, "w")}
    found = msgspec.json.decode(bench.store.get_bytes(order.result_key), type=AttributionResult)
    opened = OpenedAudit(atomscope.open(audited / BUNDLE), audited / "models/m", lambda progress: None)
    assert found == attribute(opened, msgspec.convert(QUERY, AttributionQuery))
    assert found.documents[0].document == 2


def test_the_result_is_in_the_store_before_success_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = bench.order(fence=3)
    stored: list[bool] = []
    insist = Pulse.insist

    def watched(self: Pulse, kind: Any, **facts: Any) -> None:
        stored.append(bench.store.exists(order.result_key))
        insist(self, kind, **facts)

    monkeypatch.setattr(Pulse, "insist", watched)
    bench.run(order, lambda files, order: {"answer": 42})
    assert stored == [True]
    assert bench.store.get_bytes(order.result_key) == b'{"answer":42}'


def test_counts_are_told_while_a_job_runs_and_none_comes_after_its_end(bench: Bench) -> None:
    def work(files: StoredAudit, _order: JobOrder) -> object:
        for done in range(1, 5):
            files.progress(done, 4, "steps")
            time.sleep(0.15)
        return {}

    reports = bench.run(bench.order(), work)
    beats = [report for report in reports if isinstance(report, JobHeartbeat)]
    assert len(beats) >= 3
    assert [(beat.done, beat.total) for beat in beats] == sorted((beat.done, 4) for beat in beats)
    time.sleep(0.3)
    assert bench.reports() == []


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (InvalidInput("bad_row", "no", [InputProblem(message="x", file="query", line=1)]), "bad_row", False),
        (BundleError("atoms/atoms.json is missing"), "bundle_damaged", False),
        (RuntimeError("/srv/models/secret/a.bin went away"), "worker_error", True),
        (MemoryError(), "worker_error", True),
    ],
)
def test_only_what_may_do_better_another_time_is_retryable(
    bench: Bench, error: Exception, code: str, retryable: bool
) -> None:
    def work(_files: StoredAudit, _order: JobOrder) -> object:
        raise error

    order = bench.order(fence=5)
    ended = bench.run(order, work)[-1]
    assert isinstance(ended, JobFailed)
    assert (ended.code, ended.retryable) == (code, retryable)
    assert "/srv/models" not in ended.detail
    assert ended.errors == ([{"message": "x", "file": "query", "line": 1}] if code == "bad_row" else [])
    assert not bench.store.exists(order.result_key)


def test_a_query_that_is_no_row_fails_with_its_field(bench: Bench) -> None:
    asked = {"messages": [{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}]}
    ended = bench.run(bench.order(request=asked))[-1]
    assert isinstance(ended, JobFailed)
    assert (ended.code, ended.retryable, ended.errors[0]["field"]) == ("bad_row", False, "messages[1].role")


@pytest.mark.parametrize("asked", [{}, {"prompt": "a"}, {"prompt": "a", "completion": "b", "surprise": 1}])
def test_a_request_that_is_no_query_is_bad_input(bench: Bench, asked: dict[str, Any]) -> None:
    ended = bench.run(bench.order(request=asked))[-1]
    assert isinstance(ended, JobFailed)
    assert (ended.code, ended.retryable) == ("bad_request", False)


def test_a_bundle_that_is_gone_is_not_looked_for_again(bench: Bench) -> None:
    ended = bench.run(bench.order(bundle_prefix="projects/prj_1/audits/aud_2/bundle-a1-f1/"))[-1]
    assert isinstance(ended, JobFailed)
    assert (ended.code, ended.retryable) == ("bundle_damaged", False)


def test_a_base_model_that_was_deleted_is_named(bench: Bench, audited: Path, tmp_path: Path) -> None:
    shutil.copytree(audited / BUNDLE, tmp_path / BUNDLE)
    bench.store = LocalStore(tmp_path)
    ended = bench.run(bench.order())[-1]
    assert isinstance(ended, JobFailed)
    assert (ended.code, ended.retryable) == ("input_missing", False)


@pytest.mark.parametrize("cause", ["fence", "closing"])
def test_a_job_that_should_stop_is_given_up_without_a_result(bench: Bench, cause: str) -> None:
    order = bench.order(fence=7)

    def work(files: StoredAudit, order: JobOrder) -> object:
        if cause == "fence":
            bench.valkey.client.set(live_fence_key(order.job_id), 8)
            time.sleep(0.6)
        else:
            bench.closing.set()
        files.checkpoint()
        return {}

    assert isinstance(bench.run(order, work)[-1], JobAbandoned)
    assert not bench.store.exists(order.result_key)


def test_the_last_look_is_before_the_result_is_written(bench: Bench) -> None:
    order = bench.order(fence=9)

    def work(_files: StoredAudit, order: JobOrder) -> object:
        bench.valkey.client.set(live_fence_key(order.job_id), "ended")
        time.sleep(0.6)
        return {}

    assert isinstance(bench.run(order, work)[-1], JobAbandoned)
    assert not bench.store.exists(order.result_key)


def test_one_bundle_is_kept_open_and_never_taken_for_another_stores(bench: Bench, audited: Path) -> None:
    order = bench.order()
    pulse = Pulse(bench.app, bench.valkey.client, job_lease(order), "w", bench.closing)
    first, second = (StoredAudit(bench.store, order, pulse) for _ in range(2))
    assert first.spec is second.spec
    other = StoredAudit(LocalStore(audited), order, pulse)
    assert other.spec is not first.spec
