"""Projection and whitening: rows of one shard, a sketch of it, or every inner product of all of them."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from atomscope.bundle import layout
from atomscope.types.bundle import Plan
from atomscope_workers.pipeline.gram import accumulate_gram
from atomscope_workers.pipeline.projection import ProjectedRows, project
from atomscope_workers.pipeline.sketch import sketch_rows
from atomscope_workers.stages.arrays import load_curvature, save_gram, save_projected
from atomscope_workers.stages.context import StageContext, UnitResult
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
from atomscope_workers.stages.space import finds_directions, held_by_parent, space_of

EXACT_PRODUCTS = "work/exact_products.safetensors"
"""Exact inner products `gram` (n, n) float32 of the first `MEASURED` documents, where not all are kept: by
them the error of the others is told."""

MEASURED = 64
"""Documents, of the first shard."""


def run(ctx: StageContext) -> UnitResult:
    """Write `projected/NNNN.safetensors` of the shard; or, by the first unit, `projected/gram.safetensors`.

    The Gram matrix is one unit's work, since its blocks are coordinates of all the documents. Where
    directions are to be found, every unit sketches its shard (`work/whitened/NNNN.safetensors`), and the
    first takes some exact products (`EXACT_PRODUCTS`); where raw gradients are sketched, these as well.
    """
    plan, own = read_shard_plan(ctx)
    documents = np.array(own.documents, dtype=np.int64)
    ctx.progress(0, len(documents), "documents")
    space = space_of(ctx.spec.config, plan.n_documents)
    path = layout.GRAM if space == "gram" else layout.projected_shard(ctx.index)
    write_sketch(ctx, plan, documents)
    if space == "directions":
        if finds_directions(ctx, plan.n_documents):
            _sketch(ctx, plan, documents)
    elif space == "gram" and ctx.index:
        pass
    elif held_by_parent(ctx):
        ctx.adopt(path)
    elif space == "gram":
        _gram(ctx)
    else:
        _components(ctx, plan, documents)
    ctx.progress(len(documents), len(documents), "documents")
    return UnitResult(documents=len(documents))


def _components(ctx: StageContext, plan: Plan, documents: NDArray[np.int64]) -> None:
    load = partial(streamed_gradients(ctx, plan_device(plan)), ctx.index)
    rows = project(load, load_curvature(ctx.read(layout.CURVATURE)), len(documents))
    _save(ctx, layout.projected_shard(ctx.index), documents, rows)


def _sketch(ctx: StageContext, plan: Plan, documents: NDArray[np.int64]) -> None:
    config, device = ctx.spec.config, plan_device(plan)
    curvature = load_curvature(ctx.read(layout.CURVATURE))
    load = partial(streamed_gradients(ctx, device), ctx.index)
    columns = whitened_columns(config, plan.n_documents)
    with deterministic(device):  # coordinates are added up in their columns
        found, energy = sketch_rows(curvature, load, len(documents), columns=columns, seed=config.seed)
    rows = ProjectedRows(found.numpy(), energy.numpy(), energy.numpy())
    _save(ctx, layout.whitened_sketch(ctx.index), documents, rows)
    if ctx.index == 0:
        count = min(len(documents), MEASURED)
        exact = accumulate_gram(curvature, lambda _, name: load(name)[:count], [count])
        scratch = ctx.scratch / "exact_products.safetensors"
        save_gram(documents[:count], exact, scratch)
        ctx.write(EXACT_PRODUCTS, scratch)


def _save(ctx: StageContext, path: str, documents: NDArray[np.int64], rows: ProjectedRows) -> None:
    scratch = ctx.scratch / "projected.safetensors"
    save_projected(documents, rows, scratch)
    ctx.write(path, scratch)


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
