"""One pipeline worker, order by order, over a real broker and store; stages stand in for the pipeline's."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from atomscope.bundle import layout
from atomscope.errors import InputProblem, InvalidInput, NothingToAudit
from atomscope.input_files import file_digest, folder_digest
from atomscope.store import LocalStore, ObjectNotFound
from atomscope.types.bundle import Plan, ShardPlan
from atomscope.types.jobs import JobOrder
from atomscope.types.spec import AuditConfig, AuditSpec, InputRef
from atomscope.types.work import (
    CONTROL_QUEUE,
    Report,
    Stage,
    UnitAbandoned,
    UnitFailed,
    UnitHeartbeat,
    UnitOrder,
    UnitStarted,
    UnitSucceeded,
    cancel_key,
    live_fence_key,
)
from atomscope_workers import worker_cache
from atomscope_workers.failures import describe
from atomscope_workers.pulse import Pulse, unit_lease
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.tasks import claim, decode_job, decode_order, make_app, run_order
from atomscope_workers.worker import WorkerSettingsError, available_cores, run
from tests.fixtures.valkey import Valkey

PREFIX = "projects/prj_1/audits/aud_1/a1/"
SPEC = AuditSpec(
    audit_id="aud_1",
    project_id="prj_1",
    base_model=InputRef(id="mdl_1", location="models/m/", sha256="0" * 64, size=1),
    adapter=InputRef(id="ada_1", location="adapters/a/", sha256="0" * 64, size=1),
    dataset=InputRef(id="ds_1", location="data.jsonl", sha256="0" * 64, size=1),
    config=AuditConfig(),
)

Run = Callable[[StageContext], UnitResult]


class Bench:
    """A worker's surroundings."""

    def __init__(self, folder: Path, valkey: Valkey) -> None:
        self.store = LocalStore(folder)
        self.store.put_bytes(f"{PREFIX}spec.json", msgspec.json.encode(SPEC))
        self.valkey = valkey
        self.app = make_app(valkey.url)
        self.closing = threading.Event()

    def order(self, stage: Stage = "extract", index: int = 0, fence: int = 1, **changes: Any) -> UnitOrder:
        values: dict[str, Any] = {"winners": {}, "heartbeat_seconds": 0.1} | changes
        return UnitOrder(
            project_id="prj_1",
            audit_id="aud_1",
            attempt=1,
            unit_id=f"unt_{stage}_{index}",
            stage=stage,
            index=index,
            fence=fence,
            work_prefix=PREFIX,
            spec_key=f"{PREFIX}spec.json",
            **values,
        )

    def run(self, order: UnitOrder, stage: Run) -> list[Report]:
        """Run an order whose fence is live; every report it sent."""
        self.valkey.client.set(live_fence_key(order.unit_id), order.fence)
        pulse = Pulse(self.app, self.valkey.client, unit_lease(order), "w", self.closing)
        run_order(self.store, order, pulse, {order.stage: stage})
        return self.reports()

    def reports(self) -> list[Report]:
        found: list[Report] = []
        while text := self.valkey.client.rpop(CONTROL_QUEUE):
            arguments, _, _ = json.loads(base64.b64decode(json.loads(str(text))["body"]))
            found.append(msgspec.convert(arguments[0], Report))
        return found


@pytest.fixture
def bench(tmp_path: Path, valkey: Valkey) -> Bench:
    return Bench(tmp_path / "store", valkey)


def test_a_unit_reports_its_start_and_end_and_writes_unit_json_last(bench: Bench) -> None:
    order = bench.order()
    unit = layout.unit_prefix(PREFIX, "extract", 0, 1)

    def stage(ctx: StageContext) -> UnitResult:
        ctx.write_bytes("gradients/0000.safetensors", b"g")
        (ctx.scratch / "file").write_bytes(b"l")
        ctx.write("work/losses/0000.safetensors", ctx.scratch / "file")
        assert not bench.store.exists(f"{unit}unit.json")
        return UnitResult(summary={"note": 1})

    started, ended = bench.run(order, stage)
    assert isinstance(started, UnitStarted)
    assert isinstance(ended, UnitSucceeded)
    assert (started.sequence, ended.sequence, ended.summary, ended.shards) == (1, 2, {"note": 1}, None)
    assert bench.store.exists(f"{unit}unit.json")
    assert bench.store.get_bytes(f"{unit}work/losses/0000.safetensors") == b"l"


def test_the_counts_of_a_unit_that_ends_at_once_are_told(bench: Bench) -> None:
    def stage(ctx: StageContext) -> UnitResult:
        ctx.progress(0, 8, "documents")
        ctx.progress(8, 8, "documents")
        return UnitResult()

    _, beat, ended = bench.run(bench.order(heartbeat_seconds=10.0), stage)
    assert isinstance(beat, UnitHeartbeat)
    assert (beat.done, beat.total, beat.unit, beat.sequence) == (8, 8, "documents", 2)
    assert isinstance(ended, UnitSucceeded)


@pytest.mark.parametrize(("stage", "given_up"), [("extract", True), ("dictionary", False)])
def test_what_is_not_a_shard_may_stand_still(bench: Bench, stage: Stage, given_up: bool) -> None:
    order, given = bench.order(stage), threading.Event()
    lease = unit_lease(order, stall_seconds=0.2)
    pulse = Pulse(bench.app, bench.valkey.client, lease, "w", bench.closing, given.set)

    def stand(ctx: StageContext) -> UnitResult:
        assert given.wait(30.0 if given_up else 1.0) == given_up
        return UnitResult()

    run_order(bench.store, order, pulse, {stage: stand})
    assert isinstance(bench.reports()[-1], UnitSucceeded)


@pytest.mark.parametrize("moves", ["checkpoint", "progress"])
def test_a_shard_that_moves_may_take_its_time(bench: Bench, moves: str) -> None:
    order, given = bench.order(), threading.Event()
    lease = unit_lease(order, stall_seconds=2.0)
    pulse = Pulse(bench.app, bench.valkey.client, lease, "w", bench.closing, given.set)

    def move(ctx: StageContext) -> UnitResult:
        for done in range(30):
            time.sleep(0.1)
            ctx.checkpoint() if moves == "checkpoint" else ctx.progress(done, 30, "documents")
        return UnitResult()

    run_order(bench.store, order, pulse, {order.stage: move})
    assert not given.is_set()


def test_a_shard_does_not_stand_still_while_its_files_go_over_a_network(bench: Bench) -> None:
    given = threading.Event()
    lease = unit_lease(bench.order(), stall_seconds=0.2)
    pulse = Pulse(bench.app, bench.valkey.client, lease, "w", bench.closing, given.set)
    pulse.start()
    with pulse.waiting():
        with pulse.waiting():
            pass
        assert not given.wait(1.0), "the outer one goes on"
    assert given.wait(30.0), "it counts again from then on"
    pulse.stop()


def test_counts_are_told_while_a_unit_runs_and_none_comes_after_its_end(bench: Bench) -> None:
    def stage(ctx: StageContext) -> UnitResult:
        for done in range(1, 5):
            ctx.progress(done, 4, "documents")
            time.sleep(0.15)
        return UnitResult()

    reports = bench.run(bench.order(), stage)
    beats = [report for report in reports if isinstance(report, UnitHeartbeat)]
    assert len(beats) >= 3
    assert [beat.done for beat in beats] == sorted(beat.done for beat in beats)
    assert [report.sequence for report in reports] == list(range(1, len(reports) + 1))
    time.sleep(0.3)
    assert bench.reports() == []


def test_a_unit_reads_what_the_winners_wrote_and_nothing_of_other_fences(bench: Bench) -> None:
    for index, fence, text in ((0, 1, b"lost"), (0, 2, b"won"), (1, 1, b"one")):
        prefix = layout.unit_prefix(PREFIX, "extract", index, fence)
        bench.store.put_bytes(f"{prefix}gradients/{index:04d}.safetensors", text)
        bench.store.put_bytes(f"{prefix}unit.json", b'{"paths": []}')
    bench.store.put_bytes(f"{layout.unit_prefix(PREFIX, 'extract', 0, 1)}odd.json", b"x")
    seen: dict[str, Any] = {}

    def stage(ctx: StageContext) -> UnitResult:
        seen["outputs"] = ctx.outputs()
        seen["shards"] = ctx.shards
        seen["first"] = ctx.read("gradients/0000.safetensors").read_bytes()
        with pytest.raises(ObjectNotFound):
            ctx.read("odd.json")
        return UnitResult()

    reports = bench.run(bench.order("curvature", winners={"validate": [1], "extract": [2, 1]}), stage)
    assert isinstance(reports[-1], UnitSucceeded)
    assert seen == {
        "outputs": ["gradients/0000.safetensors", "gradients/0001.safetensors"],
        "shards": 2,
        "first": b"won",
    }


def test_extraction_learns_the_number_of_shards_from_the_plan(bench: Bench) -> None:
    shard = ShardPlan(index=0, documents=[0], micro_batches=[[0]], n_tokens=3)
    plan = Plan(
        n_rows=2,
        n_documents=2,
        n_tokens=6,
        n_target_tokens=2,
        token_budget=8,
        shards=[shard, shard],
        compute_dtype="float32",
        device_kind="cpu",
    )
    bench.store.put_bytes(
        f"{layout.unit_prefix(PREFIX, 'validate', 0, 3)}{layout.PLAN}", msgspec.json.encode(plan)
    )
    seen: list[int] = []

    def stage(ctx: StageContext) -> UnitResult:
        seen.append(ctx.shards)
        return UnitResult()

    bench.run(bench.order("extract", winners={"validate": [3]}), stage)
    bench.run(bench.order("validate"), stage)
    assert seen == [2, 0]


def test_bad_input_is_reported_with_its_place_and_is_not_retried(bench: Bench) -> None:
    def stage(_ctx: StageContext) -> UnitResult:
        raise InvalidInput("bad_row", "row 3", [InputProblem(message="empty", file="t.jsonl", line=3)])

    ended = bench.run(bench.order("validate"), stage)[-1]
    assert isinstance(ended, UnitFailed)
    assert (ended.code, ended.retryable, ended.nothing_to_audit) == ("bad_row", False, False)
    assert ended.errors == [{"message": "empty", "file": "t.jsonl", "line": 3}]


def test_an_empty_set_is_nothing_to_audit(bench: Bench) -> None:
    def stage(_ctx: StageContext) -> UnitResult:
        raise NothingToAudit("empty_dataset", "no rows")

    ended = bench.run(bench.order("validate"), stage)[-1]
    assert isinstance(ended, UnitFailed)
    assert ended.nothing_to_audit


def test_an_unexpected_error_is_retryable_and_tells_no_folders(bench: Bench) -> None:
    def stage(_ctx: StageContext) -> UnitResult:
        raise RuntimeError("cannot open /srv/secret-place/models/model.safetensors " + "x" * 9_000)

    ended = bench.run(bench.order(), stage)[-1]
    assert isinstance(ended, UnitFailed)
    assert ended.retryable
    assert ended.detail.startswith("RuntimeError: cannot open model.safetensors x")
    assert len(ended.detail) == 500
    assert describe(ValueError("see https://example.org/a/b and a/b")) == (
        "ValueError: see https://example.org/a/b and a/b"
    )


def test_cancel_acts_within_one_batch(bench: Bench) -> None:
    order = bench.order()
    batches: list[float] = []

    def stage(ctx: StageContext) -> UnitResult:
        while len(batches) < 50:
            ctx.checkpoint()
            batches.append(time.monotonic())
            if len(batches) == 2:
                bench.valkey.client.set(cancel_key("aud_1"), "1")
            time.sleep(0.6)
        return UnitResult()

    assert isinstance(bench.run(order, stage)[-1], UnitAbandoned)
    assert len(batches) == 2
    assert not bench.store.exists(f"{layout.unit_prefix(PREFIX, 'extract', 0, 1)}unit.json")


def test_a_unit_whose_fence_is_no_longer_live_stops_without_committing(bench: Bench) -> None:
    order = bench.order()

    def stage(ctx: StageContext) -> UnitResult:
        ctx.checkpoint()
        bench.valkey.client.set(live_fence_key(order.unit_id), 2)
        time.sleep(0.6)
        return UnitResult()

    assert isinstance(bench.run(order, stage)[-1], UnitAbandoned)
    assert not bench.store.exists(f"{layout.unit_prefix(PREFIX, 'extract', 0, 1)}unit.json")


def test_a_worker_that_is_asked_to_end_hands_its_unit_back_at_the_next_checkpoint(bench: Bench) -> None:
    def stage(ctx: StageContext) -> UnitResult:
        bench.closing.set()
        ctx.checkpoint()
        return UnitResult()

    assert isinstance(bench.run(bench.order(), stage)[-1], UnitAbandoned)


def test_a_unit_goes_on_while_the_broker_is_away_and_its_end_is_told_later(
    tmp_path: Path, own_valkey: Valkey
) -> None:
    bench = Bench(tmp_path / "store", own_valkey)

    def stage(ctx: StageContext) -> UnitResult:
        own_valkey.stop()
        for _ in range(3):
            ctx.checkpoint()
            time.sleep(0.2)
        threading.Timer(0.5, own_valkey.start).start()
        return UnitResult()

    reports = bench.run(bench.order(), stage)
    assert isinstance(reports[-1], UnitSucceeded)


def test_an_order_is_taken_once_and_only_under_its_live_fence(bench: Bench) -> None:
    client: redis.Redis = bench.valkey.client
    client.set(live_fence_key("unt_1"), 4)
    assert not claim(client, "unt_1", 3, "a")
    client.set(live_fence_key("unt_1"), 3)
    assert claim(client, "unt_1", 3, "a")
    assert not claim(client, "unt_1", 3, "b")
    assert claim(client, "atr_1", 3, "b"), "another subject has a claim of its own"
    client.flushall()
    assert claim(client, "unt_1", 3, "b"), "a broker that lost its keys does not stop the work"


def test_an_order_of_another_version_or_shape_is_left_to_others(bench: Bench) -> None:
    job = JobOrder(
        project_id="prj_1",
        audit_id="aud_1",
        job_id="atr_1",
        kind="attribution",
        fence=1,
        bundle_prefix="b/",
        result_key="r",
        request={},
        heartbeat_seconds=1.0,
    )
    for decode, made in ((decode_order, bench.order()), (decode_job, job)):
        order = msgspec.to_builtins(made)
        assert decode(order) == made
        assert decode(order | {"v": 2}) is None
        assert decode(order | {"surprise": 1}) is None
        assert decode(order | {"fence": "1"}) is None
        assert decode([]) is None
    assert decode_job(msgspec.to_builtins(job) | {"kind": "divination"}) is None
    assert decode_order(msgspec.to_builtins(job)) is None


class RemoteStore(LocalStore):
    """A store whose files cannot be opened in place, as on S3."""

    fetched = 0

    def local_path(self, key: str) -> Path | None:
        return None

    def get_file(self, key: str, path: Path) -> None:
        self.fetched += 1
        super().get_file(key, path)


def test_inputs_are_fetched_once_into_a_cache_and_their_digest_is_checked(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(worker_cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    remote = RemoteStore(tmp_path / "store")
    remote.put_bytes("models/m/config.json", b"{}")
    remote.put_bytes("models/m/model.safetensors", b"w")
    remote.put_bytes("data.jsonl", b"row\n")
    files = {
        name: file_digest(tmp_path / "store/models/m" / name) for name in ("config.json", "model.safetensors")
    }
    model = msgspec.structs.replace(SPEC.base_model, sha256=folder_digest(files))
    data = msgspec.structs.replace(SPEC.dataset, sha256=file_digest(tmp_path / "store/data.jsonl"))
    bench.store = remote
    remote.put_bytes("data.txt", b"row\n")
    text = msgspec.structs.replace(data, location="data.txt")
    seen: list[str] = []

    def stage(ctx: StageContext) -> UnitResult:
        seen.extend(sorted(path.name for path in ctx.input(model).iterdir()))
        seen.extend(ctx.input(ref).name for ref in (data, text) if ctx.input(ref).is_file())
        return UnitResult()

    for fence in (1, 2):
        assert isinstance(bench.run(bench.order("validate", fence=fence), stage)[-1], UnitSucceeded)
    assert seen == ["config.json", "model.safetensors", "data.jsonl", "data.txt"] * 2
    assert remote.fetched == 4

    def changed(ctx: StageContext) -> UnitResult:
        ctx.input(SPEC.dataset)
        return UnitResult()

    ended = bench.run(bench.order("validate", fence=3), changed)[-1]
    assert isinstance(ended, UnitFailed)
    assert (ended.code, ended.retryable) == ("input_changed", False)
    assert not list((tmp_path / "cache" / "inputs").glob(".fetch-*"))


@pytest.mark.parametrize("name", ["ATOMSCOPE_DATABASE_URL", "ATOMSCOPE_SECRET_FILE"])
def test_a_worker_refuses_to_hold_the_database_or_the_secret(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("ATOMSCOPE_BROKER_URL", "redis://nowhere")
    monkeypatch.setenv("ATOMSCOPE_STORE", "file:///nowhere")
    monkeypatch.setenv(name, "x")
    with pytest.raises(WorkerSettingsError, match=name):
        run()


def test_a_worker_names_the_settings_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "ATOMSCOPE_BROKER_URL",
        "ATOMSCOPE_STORE",
        "ATOMSCOPE_DATABASE_URL",
        "ATOMSCOPE_SECRET_FILE",
    ):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(WorkerSettingsError, match="ATOMSCOPE_BROKER_URL, ATOMSCOPE_STORE"):
        run()


def test_threads_are_counted_within_the_quota_of_a_container(tmp_path: Path) -> None:
    cores = available_cores(tmp_path / "none")
    quota = tmp_path / "cpu.max"
    quota.write_text("max 100000\n")
    assert available_cores(quota) == cores
    quota.write_text("50000 100000\n")
    assert available_cores(quota) == 1
