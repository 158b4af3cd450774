"""Eigenbases: the shards' factor sums, reduced in shard order and decomposed."""

from __future__ import annotations

from collections.abc import Iterator

from atomscope.bundle import layout
from atomscope_workers.pipeline.curvature import Rotation, rotations
from atomscope_workers.pipeline.factors import FactorSums, reduce_factors
from atomscope_workers.stages.arrays import (
    load_curvature,
    load_factors,
    load_rotations,
    save_rotations,
)
from atomscope_workers.stages.context import StageContext, UnitResult


def run(ctx: StageContext) -> UnitResult:
    """Write `work/eigenbases.safetensors`; a refit has them in its parent's curvature."""
    ctx.progress(0, ctx.shards, "shards")
    if ctx.parent is None or not ctx.parent.holds(layout.CURVATURE):
        scratch = ctx.scratch / "eigenbases.safetensors"
        save_rotations(rotations(reduce_factors(_sums(ctx))), scratch)
        ctx.write(layout.EIGENBASES, scratch)
    ctx.progress(ctx.shards, ctx.shards, "shards")
    return UnitResult()


def read_rotations(ctx: StageContext) -> tuple[Rotation, ...]:
    """The eigenbases of every module, sorted by name."""
    if ctx.parent is not None and ctx.parent.holds(layout.CURVATURE):
        return tuple(module.rotation for module in load_curvature(ctx.parent.read(layout.CURVATURE)))
    return load_rotations(ctx.read(layout.EIGENBASES))


def _sums(ctx: StageContext) -> Iterator[FactorSums]:
    """Those of every shard in turn; one file is on this machine at a time."""
    for index in range(ctx.shards):
        ctx.checkpoint()
        ctx.progress(index, ctx.shards, "shards")
        path = layout.factor_sums(index)
        yield load_factors(ctx.read(path))
        ctx.forget(path)
