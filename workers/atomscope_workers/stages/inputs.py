"""What several stages read: the plan, the shards' files, the stored rows, the loaded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from atomscope.bundle import layout
from atomscope.types.bundle import Plan, ShardPlan, StoredShard
from atomscope.types.spec import AuditSpec
from atomscope_workers.models.device import choose_device, dtype_name, dtype_of_name
from atomscope_workers.models.kept import KeptModels
from atomscope_workers.models.load import CheckedParts, checked_parts
from atomscope_workers.models.lora import LoraModel
from atomscope_workers.pipeline.gram import LoadShard
from atomscope_workers.pipeline.storage import DTYPES, GradientDtype
from atomscope_workers.stages.context import StageContext
from atomscope_workers.stages.gradient_file import GradientShards
from atomscope_workers.stages.rows import ROWS, StoredRows

_kept = KeptModels()
"""The models this process used last: a worker keeps them from one shard to the next."""


def write_plan(ctx: StageContext, plan: Plan) -> None:
    """The plan, and of every shard what its own units need of it: they are not to read that of all others."""
    ctx.write_bytes(layout.PLAN, msgspec.json.format(msgspec.json.encode(plan), indent=1))
    for shard in plan.shards:
        own = msgspec.structs.replace(plan, shards=[shard])
        ctx.write_bytes(layout.shard_plan(shard.index), msgspec.json.encode(own))


def read_plan(ctx: StageContext) -> Plan:
    return msgspec.json.decode(ctx.read(layout.PLAN).read_bytes(), type=Plan)


def read_shard_plan(ctx: StageContext) -> tuple[Plan, ShardPlan]:
    """Of a stage that fans out: the plan with the unit's shard alone, and that shard."""
    plan = msgspec.json.decode(ctx.read(layout.shard_plan(ctx.index)).read_bytes(), type=Plan)
    return plan, plan.shards[0]


def read_shards(ctx: StageContext) -> list[StoredShard]:
    """Where each shard of the plan is stored, or is to be; none of an audit that keeps no gradients."""
    return msgspec.json.decode(ctx.read(layout.SHARDS).read_bytes(), type=list[StoredShard])


def read_rows(ctx: StageContext) -> StoredRows:
    """The audited documents' rows, by physical row."""
    return StoredRows(ctx.read(ROWS))


def gradient_shards(ctx: StageContext, device: torch.device) -> GradientShards:
    """Every gradient, given on `device`."""
    paths = [ctx.read(layout.gradient_shard(index)) for index in range(ctx.shards)]
    return GradientShards(paths, device)


def streamed_gradients(ctx: StageContext, device: torch.device) -> LoadShard:
    """Gradients by shard and parameter, on `device`: one shard is open, and on this machine, at a time.

    Ask for all that is wanted of a shard before the next.
    """
    held: dict[int, GradientShards] = {}

    def load(shard: int, name: str) -> torch.Tensor:
        ctx.checkpoint()
        if shard not in held:
            for other in list(held):
                del held[other]  # the file's pages with it
                ctx.forget(layout.gradient_shard(other))
            held[shard] = GradientShards([ctx.read(layout.gradient_shard(shard))], device)
        return held[shard].shard(0, name)

    return load


def plan_gradient_dtype(plan: Plan) -> GradientDtype:
    """In what the plan's shards hold gradients; raises `ValueError` for what this version does not know."""
    for dtype in DTYPES:
        if dtype == plan.gradient_dtype:
            return dtype
    raise ValueError(f"not a dtype of stored gradients: {plan.gradient_dtype!r}")


def plan_device(plan: Plan) -> torch.device:
    """The device that the plan was made for; raises `RuntimeError` when this machine has none.

    A plan for CPUs runs on the CPU of a machine that has a GPU too: gradients of one audit are of one kind.
    """
    if plan.device_kind == "cpu":
        return torch.device("cpu")
    device = choose_device()
    if device.type != plan.device_kind:
        raise RuntimeError(f"the plan is for {plan.device_kind}, this worker has {device.type}")
    return device


def lora_model(ctx: StageContext, plan: Plan) -> LoraModel:
    """Base and adapter in the plan's dtype and on its device, kept from one unit to the next."""
    spec, device = ctx.spec, plan_device(plan)
    dtype = dtype_of_name(plan.compute_dtype)

    def parts() -> CheckedParts:
        return checked_parts(ctx.input(spec.base_model), ctx.input(spec.adapter), dtype=dtype, device=device)

    return kept_model(spec, dtype, device, parts, ctx.input(spec.base_model))


def kept_model(
    spec: AuditSpec, dtype: torch.dtype, device: torch.device, parts: Callable[[], CheckedParts], base: Path
) -> LoraModel:
    """An audit's model, made of `parts` as far as this process does not keep it; `base` is its base's folder.

    It serves until another adapter of the same base is asked for.
    """
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    return _kept.get(_key(spec, dtype, device), spec.adapter.sha256, parts, size=size, device=device)


def release_models() -> None:
    """Let go of the models that earlier audits left in memory, for a unit that needs none."""
    _kept.clear()


def holds_model(spec: AuditSpec, dtype: torch.dtype, device: torch.device, size: int) -> bool:
    """Whether this process has the base; where not, others go that would not leave it room for `size`."""
    if _kept.holds(_key(spec, dtype, device), device):
        return True
    _kept.make_room(size, device)
    return False


def _key(spec: AuditSpec, dtype: torch.dtype, device: torch.device) -> tuple[str, ...]:
    return (spec.base_model.sha256, dtype_name(dtype), device.type)
