"""Coherence of the documents of atoms and behaviours, beside that of random ones.

It is of raw gradients; past `exact_documents`, and in refits of `gradients: sketch`, of the sketch of them
that was made shard by shard: a cosine is then off by one over the root of its columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from atomscope.bundle import layout
from atomscope_workers.pipeline.coherence import Beginnings, LoadRows, coherences, random_orders
from atomscope_workers.stages.arrays import load_losses, load_sketch
from atomscope_workers.stages.context import StageContext
from atomscope_workers.stages.inputs import gradient_shards, read_plan
from atomscope_workers.stages.raw_sketch import compares_sketches, sketch_path
from atomscope_workers.stages.sketch_columns import raw_columns

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Coherence:
    """Of the documents of an atom or behaviour."""

    own: float
    null_mean: float
    """Mean over random sets of as many documents."""
    null_95: float
    """Their 95th percentile."""


def coherence_of(ctx: StageContext, top: Sequence[NDArray[np.int64]]) -> list[Coherence]:
    """Coherence of every set of positions of documents, and that of random sets of its size."""
    losses = load_losses([ctx.read(layout.shard_losses(index)) for index in range(ctx.shards)])
    candidates = np.flatnonzero(losses.gradient_norm > 0)
    orders = random_orders(candidates, ctx.spec.config.top_documents, ctx.spec.config.seed)
    sizes = np.unique([len(item) for item in top if len(item) > 1]).astype(np.int64)
    sets = [*(Beginnings.whole(item) for item in top), *(Beginnings(order, sizes) for order in orders)]
    names, load, norms = _rows(ctx, sets, losses.gradient_norm)
    found = coherences(sets, names, load, norms)
    null = dict(zip(sizes.tolist(), np.transpose(found[len(top) :]), strict=True))
    return [
        Coherence(float(own[0]) if len(own) else 0.0, *_mean_and_95(null.get(len(members))))
        for own, members in zip(found[: len(top)], top, strict=True)
    ]


def _rows(
    ctx: StageContext, sets: Sequence[Beginnings], norms: NDArray[np.float64]
) -> tuple[list[str], LoadRows, NDArray[np.float64]]:
    """What `coherences` goes over: names, their rows by position, and the norms (N,) of the whole rows."""
    documents = len(norms)
    if not compares_sketches(ctx, documents):
        gradients = gradient_shards(ctx, CPU)
        return gradients.names, gradients.rows, norms
    needed = np.unique(np.concatenate([item.rows for item in sets]))
    sketch = _sketched(ctx, needed)
    norms = np.zeros(documents)
    norms[needed] = torch.linalg.vector_norm(sketch, dim=1, dtype=torch.float64).numpy()
    return ["sketch"], lambda _, rows: sketch[torch.from_numpy(np.searchsorted(needed, rows))], norms


def _sketched(ctx: StageContext, needed: NDArray[np.int64]) -> torch.Tensor:
    """Sketched raw gradients (n, columns) of the documents at these rising positions, a shard at a time."""
    parts: list[torch.Tensor] = []
    start = 0
    for shard in read_plan(ctx).shards:
        ctx.checkpoint()
        stop = start + len(shard.documents)
        own = torch.from_numpy(needed[(needed >= start) & (needed < stop)] - start)
        if len(own):
            path = sketch_path(ctx.spec.config, shard.index)
            parts.append(load_sketch([ctx.read(path)])[own])
            ctx.forget(path)
        start = stop
    return torch.cat(parts) if parts else torch.zeros(0, raw_columns(ctx.spec.config))


def _mean_and_95(random: NDArray[np.float64] | None) -> tuple[float, float]:
    """Of the coherence of random sets; zeros where there are none."""
    return (0.0, 0.0) if random is None else (float(random.mean()), float(np.percentile(random, 95)))
