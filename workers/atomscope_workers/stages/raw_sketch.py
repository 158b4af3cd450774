"""Sketches of raw gradients: what `gradients: sketch` keeps, and what is compared of many documents."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from atomscope.bundle import layout
from atomscope.types.bundle import Plan
from atomscope.types.spec import AuditConfig
from atomscope_workers.pipeline.sketch import sketch_raw
from atomscope_workers.stages.arrays import save_sketch
from atomscope_workers.stages.context import StageContext
from atomscope_workers.stages.determinism import deterministic
from atomscope_workers.stages.gradient_file import GradientShards
from atomscope_workers.stages.inputs import plan_device
from atomscope_workers.stages.sketch_columns import raw_columns


def compares_sketches(ctx: StageContext, documents: int) -> bool:
    """Whether the coherence of so many documents is taken of sketched gradients, not of the gradients."""
    config = ctx.spec.config
    kept = config.gradients == "sketch" and ctx.parent is not None
    return kept or documents > config.exact_documents


def sketch_path(config: AuditConfig, shard: int) -> str:
    """Where the sketch of a shard lies: in the bundle only where that is what is kept of gradients."""
    return layout.gradient_sketch(shard) if config.gradients == "sketch" else layout.raw_sketch(shard)


def write_sketch(ctx: StageContext, plan: Plan, documents: NDArray[np.int64]) -> None:
    """Write the sketch of the unit's shard, these documents, where it is kept or coherence is taken of it.

    A refit of `gradients: sketch` has it from its parent.
    """
    config = ctx.spec.config
    kept = config.gradients == "sketch"
    path = sketch_path(config, ctx.index)
    if kept and ctx.parent is not None:
        ctx.adopt(path)
        return
    if not kept and not compares_sketches(ctx, plan.n_documents):
        return
    device = plan_device(plan)
    gradients = GradientShards([ctx.read(layout.gradient_shard(ctx.index))], device)

    def load(name: str) -> torch.Tensor:
        ctx.checkpoint()
        return gradients.shard(0, name)

    with deterministic(device):
        rows = sketch_raw(
            gradients.names, load, len(documents), columns=raw_columns(config), seed=config.seed
        )
    scratch = ctx.scratch / "sketch.safetensors"
    save_sketch(documents, rows, scratch)
    ctx.write(path, scratch)
