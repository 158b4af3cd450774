"""Projection and whitening of one shard."""

from __future__ import annotations

import numpy as np

from atomscope.bundle import layout
from atomscope_workers.pipeline.projection import project
from atomscope_workers.stages.arrays import load_curvature, save_projected
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.stages.gradient_file import GradientShards
from atomscope_workers.stages.inputs import plan_device, read_plan


def run(ctx: StageContext) -> UnitResult:
    """Write `projected/NNNN.safetensors` of the shard."""
    plan = read_plan(ctx)
    documents = plan.shards[ctx.index].documents
    ctx.progress(0, len(documents), "documents")
    curvature = load_curvature(ctx.read(layout.CURVATURE))
    shard = GradientShards([ctx.read(layout.gradient_shard(ctx.index))], plan_device(plan))
    rows = project(lambda name: shard.shard(0, name), curvature, len(documents))
    scratch = ctx.scratch / "projected.safetensors"
    save_projected(np.array(documents, dtype=np.int64), rows, scratch)
    ctx.write(layout.projected_shard(ctx.index), scratch)
    ctx.progress(len(documents), len(documents), "documents")
    return UnitResult(documents=len(documents))
