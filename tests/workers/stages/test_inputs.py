"""What several stages read: plan, rows, gradients, and the model that a process keeps."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atomscope.bundle import layout
from atomscope.store import ObjectNotFound
from atomscope.types.bundle import Plan, ShardPlan
from atomscope.types.spec import AuditConfig
from atomscope_workers.models.device import choose_device
from atomscope_workers.stages import inputs
from atomscope_workers.stages.rows import ROWS, StoredRow
from tests.fixtures.models import TinyAdapterFactory
from tests.workers.stages.units import a_spec, extracted, random_gradients, unit

HERE = choose_device().type
ELSEWHERE = "cuda" if HERE == "cpu" else "mps"


def _plan(device: str = HERE, dtype: str = "float32") -> Plan:
    return Plan(
        n_rows=2, n_documents=2, n_tokens=8, n_target_tokens=4, token_budget=8,
        shards=[], compute_dtype=dtype, device_kind=device,
    )  # fmt: skip


def test_a_plan_is_read_as_it_was_stored(tmp_path: Path) -> None:
    ctx = unit(tmp_path / "work", "extract", a_spec())
    with pytest.raises(ObjectNotFound, match=r"plan\.json"):
        inputs.read_plan(ctx)
    shards = [
        ShardPlan(index=index, documents=[index], micro_batches=[[index]], n_tokens=4) for index in range(2)
    ]
    plan = msgspec.structs.replace(_plan(), shards=shards)
    inputs.write_plan(ctx, plan)
    assert inputs.read_plan(ctx) == plan
    for index, shard in enumerate(shards):
        own = unit(tmp_path / "work", "extract", a_spec(), index=index)
        assert inputs.read_shard_plan(own) == (msgspec.structs.replace(plan, shards=[shard]), shard)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.integers(0, 10**9), st.text(), max_size=5))
def test_rows_of_any_text_come_back_by_physical_row(texts: dict[int, str]) -> None:
    """Line breaks of every kind among them: a row is a line of the file."""
    rows = {
        row: StoredRow(document=row, id=text, messages=[{"role": "user", "content": f"\u2028\x85\r{text}\n"}])
        for row, text in sorted(texts.items())
    }
    with tempfile.TemporaryDirectory() as folder:
        ctx = unit(Path(folder) / "work", "report", a_spec())
        ctx.write_bytes(ROWS, b"".join(msgspec.json.encode(row) + b"\n" for row in rows.values()))
        assert inputs.read_rows(ctx) == rows


def test_gradients_of_all_shards_are_read_in_the_order_of_the_plan(tmp_path: Path) -> None:
    gradients = random_gradients(7)
    audit = extracted(tmp_path / "work", gradients, AuditConfig(shard_documents=3))
    assert audit.shards == 3
    shards = inputs.gradient_shards(audit.context("characterise"), torch.device("cpu"))
    for name, value in gradients.items():
        np.testing.assert_array_equal(shards.rows(name, np.arange(7)).numpy(), value)


def test_a_streamed_shard_lets_go_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = random_gradients(7)
    audit = extracted(tmp_path / "work", gradients, AuditConfig(shard_documents=3))
    ctx, gone = audit.context("characterise"), list[str]()
    monkeypatch.setattr(ctx, "forget", gone.append)
    load = inputs.streamed_gradients(ctx, torch.device("cpu"))
    for index, rows in enumerate((slice(0, 3), slice(3, 6), slice(6, 7))):
        for name, value in gradients.items():
            np.testing.assert_array_equal(load(index, name).numpy(), value[rows])
        assert gone == [layout.gradient_shard(before) for before in range(index)]


def test_a_plan_for_another_device_is_refused() -> None:
    assert inputs.plan_device(_plan()).type == HERE
    with pytest.raises(RuntimeError, match=f"the plan is for {ELSEWHERE}, this worker has {HERE}"):
        inputs.plan_device(_plan(ELSEWHERE))


def test_a_plan_for_cpus_runs_on_the_cpu_of_a_machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "choose_device", lambda: torch.device("cuda", 0))
    assert inputs.plan_device(_plan("cpu")) == torch.device("cpu")
    with pytest.raises(RuntimeError, match="the plan is for mps, this worker has cuda"):
        inputs.plan_device(_plan("mps"))


def test_models_are_kept_from_one_unit_to_the_next_and_never_taken_for_another(
    tiny_llama: Path, tiny_adapter: TinyAdapterFactory, tmp_path: Path
) -> None:
    """Equal base, adapter and dtype give the same object; another adapter takes its place on the base."""
    first = a_spec(base_model=tiny_llama, adapter=tiny_adapter(seed=1))
    second = a_spec(base_model=tiny_llama, adapter=tiny_adapter(seed=2))
    shard = unit(tmp_path / "first", "extract", first, index=0, shards=2)
    model = inputs.lora_model(shard, _plan())
    own = {item.name: item.linear.weight.clone() for item in model.parameters}
    assert model.dtype == torch.float32
    next_shard = unit(tmp_path / "first", "extract", first, index=1, shards=2)
    assert inputs.lora_model(next_shard, _plan()) is model

    other = inputs.lora_model(unit(tmp_path / "second", "extract", second), _plan())
    assert [item.name for item in other.parameters] == list(own)
    assert not any(torch.equal(item.linear.weight, own[item.name]) for item in other.parameters)

    narrow = inputs.lora_model(shard, _plan(dtype="bfloat16"))
    assert narrow.dtype == torch.bfloat16
    assert {parameter.linear.weight.dtype for parameter in narrow.parameters} == {torch.bfloat16}
    again = inputs.lora_model(shard, _plan())
    assert again.base is model.base
    assert all(torch.equal(item.linear.weight, own[item.name]) for item in again.parameters)
