"""A shard's part of lambda: the sum over its documents of the squared rotated gradients."""

from __future__ import annotations

from atomscope.bundle import layout
from atomscope_workers.pipeline.curvature import squared_sum
from atomscope_workers.stages.arrays import save_squared_sums
from atomscope_workers.stages.context import Parent, StageContext, UnitResult
from atomscope_workers.stages.eigenbases import read_rotations
from atomscope_workers.stages.inputs import plan_device, read_shard_plan, streamed_gradients


def run(ctx: StageContext) -> UnitResult:
    """Write `work/lambdas/NNNN.safetensors`, where lambda is to be measured: not for `kfac`, nor in a refit
    whose parent measured it.
    """
    plan, shard = read_shard_plan(ctx)
    documents = len(shard.documents)
    ctx.progress(0, documents, "documents")
    if ctx.spec.config.preconditioner != "kfac" and not parent_measured(ctx.parent):
        load = streamed_gradients(ctx, plan_device(plan))
        sums = {
            rotation.name: squared_sum(rotation, load(ctx.index, rotation.name)).cpu()
            for rotation in read_rotations(ctx)
        }
        scratch = ctx.scratch / "lambda.safetensors"
        save_squared_sums(sums, scratch)
        ctx.write(layout.squared_sums(ctx.index), scratch)
    ctx.progress(documents, documents, "documents")
    return UnitResult(documents=documents)


def parent_measured(parent: Parent | None) -> bool:
    """Whether a refit's parent holds lambda as it is measured."""
    return (
        parent is not None and parent.holds(layout.CURVATURE) and parent.spec.config.preconditioner != "kfac"
    )
