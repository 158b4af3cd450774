"""Exact products of every document with directions: of each unit, over some parameters.

A unit reads of every gradient its own parameters alone, so that all units together read the gradients once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file

from atomscope.bundle import layout
from atomscope.types.work import Stage
from atomscope_workers.pipeline.directions import module_products
from atomscope_workers.pipeline.gram import LoadShard
from atomscope_workers.stages.arrays import CurvatureFile
from atomscope_workers.stages.basis import of_raw_gradients
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.stages.inputs import parameter_gradients, plan_device, read_plan, read_shard_plan
from atomscope_workers.stages.space import finds_directions
from atomscope_workers.stages.tensor_ranges import TensorRanges

MOST_UNITS = 64
"""Units that share the parameters, at most: each leaves products of all documents, which one worker adds."""
NUMBERS = 16
"""Of a gradient, for each that a unit leaves of a document: fewer, and products outweigh the gradients."""
HELD_BYTES = 2**30
"""Bytes of one parameter's gradients that are held; of more, they are read a second time."""

_DIRECTIONS: dict[Stage, Stage] = {"along": "directions", "along_again": "directions_again"}


def run(ctx: StageContext) -> UnitResult:
    """Write `work/along/NNNN.safetensors`, or `work/along_again/`: `products` (N, R) float32 of unit rows.

    Nothing is written where documents are compared otherwise, or a refit has its parent's coordinates.
    """
    plan, shard = read_shard_plan(ctx)
    documents = len(shard.documents)
    ctx.progress(0, documents, "documents")
    if finds_directions(ctx, plan.n_documents):
        curvature = CurvatureFile(TensorRanges(partial(ctx.read_range, layout.CURVATURE)))
        found = TensorRanges(partial(ctx.read_range, layout.direction_weights(_DIRECTIONS[ctx.stage])))
        units = _units(ctx, curvature, found.shape("weights")[0])
        if ctx.index < units:
            _products(ctx, curvature, units, documents)
    ctx.progress(documents, documents, "documents")
    return UnitResult(documents=documents)


def summed_products(ctx: StageContext, stage: Stage, directions: int) -> torch.Tensor:
    """Products (N, R) over all parameters, from what the units of `stage` wrote, in their order."""
    curvature = CurvatureFile(TensorRanges(partial(ctx.read_range, layout.CURVATURE)))
    units = _units(ctx, curvature, directions)
    paths = [layout.products_along(stage, index) for index in range(units)]
    total = load_tensors(ctx.read(paths[0]))["products"]
    for path in paths[1:]:
        ctx.checkpoint()
        total += load_tensors(ctx.read(path))["products"]
        ctx.forget(path)
    return total


def _units(ctx: StageContext, curvature: CurvatureFile, directions: int) -> int:
    """Units that have parameters."""
    gradient = sum(map(math.prod, curvature.shapes.values()))
    return min(ctx.shards, MOST_UNITS, max(1, gradient // (NUMBERS * max(1, directions))))


def _products(ctx: StageContext, curvature: CurvatureFile, units: int, documents: int) -> None:
    plan = read_plan(ctx)
    device, sizes = plan_device(plan), [len(shard.documents) for shard in plan.shards]
    # The largest are dealt out first: every unit has about as much to read.
    by_size = sorted(curvature.shapes, key=lambda name: (-math.prod(curvature.shapes[name]), name))
    names = by_size[ctx.index :: units]
    found = load_file(ctx.read(layout.direction_weights(_DIRECTIONS[ctx.stage])))
    weights = torch.from_numpy(of_raw_gradients(found["norm"], found["weights"]))
    load = parameter_gradients(ctx, names, device)
    products = torch.zeros(sum(sizes), len(weights), device=device)
    for number, name in enumerate(names):
        ctx.checkpoint()
        ctx.progress(documents * number // len(names), documents, "documents")
        module = curvature.module(name)
        if module.has_energy:
            once = _read_once(load, sizes, curvature.shapes[name])
            products += module_products(weights, module, once, sizes)
    norms = torch.from_numpy(found["norm"]).to(device)
    products *= torch.where(norms > 0, 1 / norms, 0.0).float()[:, None]
    scratch = ctx.scratch / "products.safetensors"
    save_file({"products": products.cpu()}, scratch)
    ctx.write(layout.products_along(ctx.stage, ctx.index), scratch)


def _read_once(load: LoadShard, sizes: Sequence[int], shape: Sequence[int]) -> LoadShard:
    """`load` for one parameter, which is asked of every shard twice."""
    if 4 * sum(sizes) * int(np.prod(shape)) > HELD_BYTES:
        return load
    held: dict[int, torch.Tensor] = {}

    def once(shard: int, name: str) -> torch.Tensor:
        if shard not in held:
            held[shard] = load(shard, name)
        return held[shard]

    return once
