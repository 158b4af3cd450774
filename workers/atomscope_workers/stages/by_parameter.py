"""Units that share the LoRA parameters: how many there are, what each has, and how it reads that alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from atomscope.bundle import layout
from atomscope_workers.pipeline.gram import LoadShard
from atomscope_workers.stages.arrays import CurvatureFile
from atomscope_workers.stages.context import StageContext
from atomscope_workers.stages.gradient_file import widened
from atomscope_workers.stages.tensor_ranges import TensorRanges

MOST_UNITS = 64
"""Units that share the parameters, at most: each leaves products of all documents, which one worker adds."""
NUMBERS_PER_PRODUCT = 16
"""Of a gradient, for each that a unit leaves of a document: fewer, and products outweigh the gradients."""


@dataclass(frozen=True)
class Part:
    """What one of the units has."""

    names: list[str]
    """Of its parameters, the largest first."""
    documents: int
    """Documents that it counts as its own, where every unit works on all of them."""


def own_part(index: int, units: int, shapes: Mapping[str, Sequence[int]], documents: int) -> Part | None:
    """The part of unit `index` of so many, each with about as much to read; None beyond them.

    `shapes` are those of all parameters by name, (d_out, d_in).
    """
    if index >= units:
        return None
    by_size = sorted(shapes, key=lambda name: (-math.prod(shapes[name]), name))
    return Part(by_size[index::units], documents * (index + 1) // units - documents * index // units)


def units_along(shards: int, parameters: int, gradient: int, directions: int) -> int:
    """Units that have parameters, of which there are so many, with `gradient` numbers in all."""
    most = gradient // (NUMBERS_PER_PRODUCT * directions)
    return min(shards, parameters, MOST_UNITS, max(1, most))


def units_combining(shards: int, parameters: int) -> int:
    """Units that have parameters, of which there are so many."""
    return min(shards, parameters)


def curvature_by_parameter(ctx: StageContext) -> CurvatureFile:
    """The curvature, of which a unit that takes some parameters reads no others."""
    return CurvatureFile(TensorRanges(partial(ctx.read_range, layout.CURVATURE)))


def parameter_gradients(ctx: StageContext, names: Sequence[str], device: torch.device) -> LoadShard:
    """Gradients by shard and parameter, one of `names`, on `device`: of a shard's file it alone is read."""
    opened: dict[int, TensorRanges] = {}
    wanted = {*names, *(layout.SCALE + name for name in names)}

    def load(shard: int, name: str) -> torch.Tensor:
        ctx.checkpoint()
        if shard not in opened:
            opened[shard] = TensorRanges(partial(ctx.read_range, layout.gradient_shard(shard)), wanted)
        file = opened[shard]
        return widened(file.tensor(name), lambda: file.tensor(layout.SCALE + name), device)

    return load
