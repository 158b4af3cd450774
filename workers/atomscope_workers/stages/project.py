"""Projection and whitening: rows of one shard, or every inner product of all of them."""

from __future__ import annotations

from functools import partial

import msgspec
import numpy as np
import torch

from atomscope.bundle import layout
from atomscope.types.atoms import AuditReport
from atomscope.types.bundle import Plan
from atomscope_workers.pipeline.gram import accumulate_gram
from atomscope_workers.pipeline.projection import ProjectedRows, project
from atomscope_workers.pipeline.sketch import cosine_error, sketch_rows
from atomscope_workers.stages.arrays import load_curvature, save_gram, save_projected
from atomscope_workers.stages.context import Parent, StageContext, UnitResult
from atomscope_workers.stages.determinism import deterministic
from atomscope_workers.stages.inputs import (
    gradient_shards,
    plan_device,
    read_plan,
    read_shard_plan,
    streamed_gradients,
)
from atomscope_workers.stages.raw_sketch import write_sketch
from atomscope_workers.stages.sketch_columns import whitened_columns
from atomscope_workers.stages.space import same_whitening, space_of

SKETCH = "work/sketch.json"
"""How far the sketch's cosines are from the exact ones, where documents are sketched."""

MEASURED = 64
"""Documents, of the first shard, over which that is measured."""


def run(ctx: StageContext) -> UnitResult:
    """Write `projected/NNNN.safetensors` of the shard; or, by the first unit, `projected/gram.safetensors`.

    The Gram matrix is one unit's work, since its blocks are coordinates of all the documents. Where raw
    gradients are sketched, every unit sketches its shard's as well.
    """
    plan, own = read_shard_plan(ctx)
    documents = np.array(own.documents, dtype=np.int64)
    ctx.progress(0, len(documents), "documents")
    space = space_of(ctx.spec.config, plan.n_documents)
    whole = space == "gram"
    path = layout.GRAM if whole else layout.projected_shard(ctx.index)
    write_sketch(ctx, plan, documents)
    if whole and ctx.index:
        pass
    elif ctx.parent is not None and ctx.spec.config.gradients == "sketch":
        ctx.adopt(path)
        if space == "sketch" and ctx.index == 0:
            _adopt_facts(ctx, ctx.parent)
    elif _is_the_parents(ctx, path, plan.n_documents) and (space != "sketch" or ctx.index):
        ctx.adopt(path)  # but for the sketch's first shard, by which its error is measured
    elif whole:
        _gram(ctx)
    else:
        _shard(ctx, plan, documents)
    ctx.progress(len(documents), len(documents), "documents")
    return UnitResult(documents=len(documents))


def _is_the_parents(ctx: StageContext, path: str, documents: int) -> bool:
    """Whether a refit's parent holds the same at `path`."""
    parent = ctx.parent
    return parent is not None and same_whitening(ctx.spec, parent, documents) and parent.holds(path)


def _adopt_facts(ctx: StageContext, parent: Parent) -> None:
    """What the parent told of how well its documents were sketched."""
    report = msgspec.json.decode(parent.read(layout.REPORT).read_bytes(), type=AuditReport)
    ctx.write_bytes(SKETCH, msgspec.json.encode(report.details["sketch"]))


def _shard(ctx: StageContext, plan: Plan, documents: np.ndarray) -> None:
    config = ctx.spec.config
    curvature = load_curvature(ctx.read(layout.CURVATURE))
    device = plan_device(plan)
    load = partial(streamed_gradients(ctx, device), ctx.index)
    if config.preconditioner == "ekfac-full":
        columns = whitened_columns(config, plan.n_documents)
        with deterministic(device):  # coordinates are added up in their columns
            found, energy = sketch_rows(curvature, load, len(documents), columns=columns, seed=config.seed)
        rows = ProjectedRows(found.numpy(), energy.numpy(), energy.numpy())
        if ctx.index == 0:
            count = min(len(documents), MEASURED)
            exact = accumulate_gram(curvature, lambda _, name: load(name)[:count], [count])
            facts = {
                "columns": columns,
                "documents_measured": count,
                "cosine_error": cosine_error(found[:count], exact.cpu()),
                "cosine_error_expected": columns**-0.5,
            }
            ctx.write_bytes(SKETCH, msgspec.json.encode(facts))
    else:
        rows = project(load, curvature, len(documents))
    scratch = ctx.scratch / "projected.safetensors"
    save_projected(documents, rows, scratch)
    ctx.write(layout.projected_shard(ctx.index), scratch)


def _gram(ctx: StageContext) -> None:
    plan = read_plan(ctx)
    gradients = gradient_shards(ctx, plan_device(plan))

    def load(shard: int, name: str) -> torch.Tensor:
        ctx.checkpoint()
        return gradients.shard(shard, name)

    curvature = load_curvature(ctx.read(layout.CURVATURE))
    gram = accumulate_gram(curvature, load, [len(shard.documents) for shard in plan.shards])
    documents = np.concatenate([np.array(shard.documents, dtype=np.int64) for shard in plan.shards])
    scratch = ctx.scratch / "gram.safetensors"
    save_gram(documents, gram, scratch)
    ctx.write(layout.GRAM, scratch)
