"""Curvature: the shards' sums reduced in shard order, eigenbases, lambda, and the chosen components."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from atomscope.bundle import layout
from atomscope_workers.pipeline.curvature import (
    Rotation,
    choose_components,
    kronecker_lambda,
    measured_lambda,
    rotations,
    silent_modules,
    squared_sum,
)
from atomscope_workers.pipeline.factors import FactorSums, reduce_factors
from atomscope_workers.stages.arrays import load_curvature, load_factors, save_curvature
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.stages.inputs import plan_device, read_plan, streamed_gradients
from atomscope_workers.stages.warned import finish


def run(ctx: StageContext) -> UnitResult:
    """Write `curvature/curvature.safetensors`; a refit has eigenbases and lambda from its parent."""
    config = ctx.spec.config
    parent = ctx.parent
    measured: dict[str, torch.Tensor] | None = None
    if parent is None or not parent.holds(layout.CURVATURE):
        bases = rotations(reduce_factors(_sums(ctx)))
    else:
        stored = load_curvature(parent.read(layout.CURVATURE))
        bases = tuple(module.rotation for module in stored)
        if parent.spec.config.preconditioner != "kfac":
            measured = {module.name: module.lambdas for module in stored}
    if config.preconditioner == "kfac":
        lambdas = {rotation.name: kronecker_lambda(rotation) for rotation in bases}
    else:
        lambdas = measured or _measured(ctx, bases)
    curvature = [
        choose_components(
            rotation,
            lambdas[rotation.name],
            preconditioner=config.preconditioner,
            components=config.components,
            damping=config.damping,
        )
        for rotation in bases
    ]
    scratch = ctx.scratch / "curvature.safetensors"
    save_curvature(curvature, scratch)
    ctx.write(layout.CURVATURE, scratch)
    silent = silent_modules(curvature)
    told = [f"{len(silent)} LoRA matrices had no gradient on any document: {silent[0]} ..."] if silent else []
    return finish(ctx, told)


def _sums(ctx: StageContext) -> Iterator[FactorSums]:
    """Those of every shard in turn; one file is on this machine at a time."""
    for index in range(ctx.shards):
        ctx.checkpoint()
        path = layout.factor_sums(index)
        yield load_factors(ctx.read(path))
        ctx.forget(path)


def _measured(ctx: StageContext, bases: tuple[Rotation, ...]) -> dict[str, torch.Tensor]:
    """Lambda by a pass over the gradients, shard by shard."""
    plan = read_plan(ctx)
    load = streamed_gradients(ctx, plan_device(plan))
    sums: dict[str, torch.Tensor] = {}
    for shard in range(ctx.shards):
        ctx.progress(shard, ctx.shards, "shards")
        for rotation in bases:
            part = squared_sum(rotation, load(shard, rotation.name)).cpu()
            sums[rotation.name] = sums[rotation.name] + part if rotation.name in sums else part
    ctx.progress(ctx.shards, ctx.shards, "shards")
    return {name: measured_lambda(total, plan.n_documents) for name, total in sums.items()}
