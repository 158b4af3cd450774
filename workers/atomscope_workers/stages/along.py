"""Exact products of every document with directions: of each unit, over some parameters.

A unit reads of every gradient its own parameters alone, and twice: for sums along the directions, and to be
multiplied by these. It holds the sums and a shard's part of one parameter, whatever the number of documents.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import accumulate, pairwise

import numpy as np
import torch
from safetensors.torch import load_file

from atomscope.bundle import layout
from atomscope.types.work import Stage
from atomscope_workers.pipeline.directions import probes
from atomscope_workers.stages.arrays import CurvatureFile
from atomscope_workers.stages.by_parameter import (
    Part,
    curvature_by_parameter,
    own_part,
    parameter_gradients,
    units_along,
)
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.stages.determinism import deterministic
from atomscope_workers.stages.gradient_file import GradientWriter
from atomscope_workers.stages.inputs import plan_device, read_plan
from atomscope_workers.stages.sketch_columns import planned_directions
from atomscope_workers.stages.space import finds_directions
from atomscope_workers.stages.tensor_ranges import TensorRanges

PRODUCTS = "products"
"""Name of the tensor (N, 1, R) float32 that a unit leaves."""

_DIRECTIONS: dict[Stage, Stage] = {"along": "directions", "along_again": "directions_again"}


def run(ctx: StageContext) -> UnitResult:
    """Write `work/along/NNNN.safetensors`, or `work/along_again/`: products of unit documents, float32.

    Nothing is written where documents are compared otherwise, or a refit has its parent's coordinates.
    """
    plan = read_plan(ctx)
    if not finds_directions(ctx, plan.n_documents):
        return UnitResult()
    curvature = curvature_by_parameter(ctx)
    part = own_part(ctx.index, _units(ctx, curvature), curvature.shapes, plan.n_documents)
    if part is None:
        return UnitResult()
    ctx.progress(0, part.documents, "documents")
    found = TensorRanges(partial(ctx.read_range, layout.direction_weights(_DIRECTIONS[ctx.stage])))
    with deterministic(plan_device(plan)):
        _products(ctx, curvature, found, part)
    ctx.progress(part.documents, part.documents, "documents")
    return UnitResult(documents=part.documents)


def summed_products(ctx: StageContext, stage: Stage) -> torch.Tensor:
    """Products (N, R) over all parameters, from what the units of `stage` wrote, in their order."""
    units = _units(ctx, curvature_by_parameter(ctx))
    paths = [layout.products_along(stage, index) for index in range(units)]
    folder = paths[0].rpartition("/")[0] + "/"
    left = {path for path in ctx.outputs() if path.startswith(folder)}
    if left != set(paths):
        raise ValueError(f"{len(left)} units left products in {folder}, and {units} share the parameters")
    total = load_file(ctx.read(paths[0]))[PRODUCTS]
    for path in paths[1:]:
        ctx.checkpoint()
        total += load_file(ctx.read(path))[PRODUCTS]
        ctx.forget(path)
    return total[:, 0]


def _units(ctx: StageContext, curvature: CurvatureFile) -> int:
    gradient = sum(map(math.prod, curvature.shapes.values()))
    directions = planned_directions(ctx.spec.config, read_plan(ctx).n_documents)
    return units_along(ctx.shards, len(curvature.shapes), gradient, directions)


def _products(ctx: StageContext, curvature: CurvatureFile, found: TensorRanges, part: Part) -> None:
    plan = read_plan(ctx)
    device, sizes = plan_device(plan), [len(shard.documents) for shard in plan.shards]
    names, documents = part.names, part.documents
    load, norms = parameter_gradients(ctx, names, device), found.tensor("norm")
    edges = [0, *accumulate(sizes)]

    def told(shard: int, begun: int) -> None:
        ctx.checkpoint()
        ctx.progress(documents * (begun + shard) // (2 * len(sizes)), documents, "documents")

    sums: dict[str, torch.Tensor] = {}
    for shard, (start, stop) in enumerate(pairwise(edges)):
        told(shard, 0)
        weights = _by_norm(found.rows("weights", start, stop), norms[start:stop]).to(device)
        for name in names:
            gradients = load(shard, name)
            added = (weights.T @ gradients.flatten(1)).unflatten(1, gradients.shape[1:])
            sums[name] = sums[name].add_(added) if shard else added
    modules = (curvature.module(name) for name in names)
    flat = {
        module.name: probes(module, sums.pop(module.name)).flatten(1).T
        for module in modules
        if module.has_energy
    }
    count = found.shape("weights")[1]
    scratch = ctx.scratch / "products.safetensors"
    with GradientWriter(scratch, np.arange(sum(sizes)), {PRODUCTS: (1, count)}) as writer:
        for shard, (start, stop) in enumerate(pairwise(edges)):
            told(shard, len(sizes))
            products = torch.zeros(stop - start, count, device=device)
            for name, probe in flat.items():
                products += load(shard, name).flatten(1) @ probe
            rows = _by_norm(products.cpu(), norms[start:stop])
            writer.write(range(start, stop), {PRODUCTS: rows[:, None]})
    ctx.write(layout.products_along(ctx.stage, ctx.index), scratch)


def _by_norm(rows: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """Rows (n, R) float32 over the lengths (n,) of whitened gradients; zero where there is no gradient."""
    return rows * torch.where(norms > 0, 1 / norms, 0.0).float()[:, None]
