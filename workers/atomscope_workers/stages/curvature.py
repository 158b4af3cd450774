"""Curvature: lambda of the whole data, from its shards' parts in their order, and the chosen components."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from atomscope.bundle import layout
from atomscope_workers.pipeline.curvature import (
    Rotation,
    choose_components,
    kronecker_lambda,
    measured_lambda,
    silent_modules,
)
from atomscope_workers.stages.arrays import load_curvature, load_squared_sums, save_curvature
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.stages.eigenbases import read_rotations
from atomscope_workers.stages.inputs import read_plan
from atomscope_workers.stages.lambdas import parent_measured
from atomscope_workers.stages.warned import finish


def run(ctx: StageContext) -> UnitResult:
    """Write `curvature/curvature.safetensors`; a refit has eigenbases and lambda from its parent."""
    config = ctx.spec.config
    ctx.progress(0, ctx.shards, "shards")
    bases = read_rotations(ctx)
    lambdas = _lambdas(ctx, bases)
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
    ctx.progress(ctx.shards, ctx.shards, "shards")
    silent = silent_modules(curvature)
    told = [f"{len(silent)} LoRA matrices had no gradient on any document: {silent[0]} ..."] if silent else []
    return finish(ctx, told)


def _lambdas(ctx: StageContext, bases: Sequence[Rotation]) -> dict[str, torch.Tensor]:
    """Lambda of every module: of the factors' eigenvalues, the parent's, or measured."""
    if ctx.spec.config.preconditioner == "kfac":
        return {rotation.name: kronecker_lambda(rotation) for rotation in bases}
    if ctx.parent is not None and parent_measured(ctx.parent):
        stored = load_curvature(ctx.parent.read(layout.CURVATURE))
        return {module.name: module.lambdas for module in stored}
    sums = {rotation.name: torch.zeros(rotation.shape, dtype=torch.float64) for rotation in bases}
    for index in range(ctx.shards):
        ctx.checkpoint()
        ctx.progress(index, ctx.shards, "shards")
        path = layout.squared_sums(index)
        for name, part in load_squared_sums(ctx.read(path)).items():
            sums[name] += part
        ctx.forget(path)
    documents = read_plan(ctx).n_documents
    return {name: measured_lambda(total, documents) for name, total in sums.items()}
