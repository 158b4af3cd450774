"""Projection and whitening of one shard."""

from __future__ import annotations

import numpy as np

from atomscope.bundle import layout
from atomscope_workers.models.device import choose_device
from atomscope_workers.pipeline.projection import project
from atomscope_workers.stages.arrays import GradientShards, load_curvature, save_projected
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.stages.inputs import read_plan


def run(ctx: StageContext) -> UnitResult:
    """Write `projected/NNNN.safetensors` of the shard."""
    documents = read_plan(ctx).shards[ctx.index].documents
    ctx.progress(0, len(documents), "documents")
    curvature = load_curvature(ctx.read(layout.CURVATURE))
    shard = GradientShards([ctx.read(layout.gradient_shard(ctx.index))], choose_device())
    rows = project(lambda name: shard.shard(0, name), curvature, len(documents))
    scratch = ctx.scratch / "projected.safetensors"
    save_projected(np.array(documents, dtype=np.int64), rows, scratch)
    ctx.write(layout.projected_shard(ctx.index), scratch)
    ctx.progress(len(documents), len(documents), "documents")
    return UnitResult(documents=len(documents))
