"""What `gradients: sketch` keeps for vectors: gradients along the directions in which documents vary most.

A vector is linear in its atom, an atom a sum of documents. So sums of gradients whose documents' weights span
most of what the documents span give any later atom's vector but for a part that is known, since the inner
products of the documents are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from atomscope.bundle import layout
from atomscope_workers.pipeline.curvature import ModuleCurvature
from atomscope_workers.pipeline.gram import LoadShard, accumulate_gram
from atomscope_workers.pipeline.sketch import BASIS_SUMS
from atomscope_workers.pipeline.vectors import nearest_combinations, weighted_sums
from atomscope_workers.stages.arrays import load_curvature
from atomscope_workers.stages.context import Parent, StageContext
from atomscope_workers.stages.gradient_file import GradientShards, GradientWriter
from atomscope_workers.stages.inputs import plan_device, read_plan, streamed_gradients
from atomscope_workers.stages.space import SpannedDocuments, spanned_documents

HELD_BYTES = 2**30
"""Bytes of vectors or sums held at once; with more of them, the gradients are read again."""
LEAST_HELD = 64
"""Vectors or sums held at once, however large: a pass over the gradients of a large model takes hours."""


def keep_basis(ctx: StageContext) -> None:
    """Write sums of gradients along `BASIS_SUMS`, and the documents' weights in them; a refit adopts both."""
    if ctx.parent is not None:
        ctx.adopt(layout.BASIS)
        ctx.adopt(layout.BASIS_WEIGHTS)
        return
    plan, spanned = read_plan(ctx), spanned_documents(ctx)
    weights = np.zeros((0, len(spanned.documents)), dtype=np.float32)
    if len(spanned.used):
        found = spanned.span.principal(BASIS_SUMS).cpu().numpy()
        weights = np.zeros((len(found), len(spanned.documents)), dtype=np.float32)
        weights[:, spanned.used] = found
    sizes = [len(shard.documents) for shard in plan.shards]
    curvature = load_curvature(ctx.read(layout.CURVATURE))
    shapes = {module.name: module.rotation.shape for module in curvature}
    numbers = sum(rows * columns for rows, columns in shapes.values())
    raw = torch.from_numpy(of_raw_gradients(np.sqrt(spanned.energy_total), weights))
    scratch = ctx.scratch / "basis.safetensors"
    with GradientWriter(scratch, np.arange(len(raw)), shapes, "float16") as writer:
        for rows in torch.arange(len(raw)).split(max(LEAST_HELD, HELD_BYTES // (4 * numbers))):
            load = streamed_gradients(ctx, plan_device(plan))
            writer.write(rows.tolist(), weighted_sums(raw[rows], load, sizes, list(shapes)))
    ctx.write(layout.BASIS, scratch)
    scratch = ctx.scratch / "basis_weights.safetensors"
    save_file({"weights": weights, "document": spanned.documents}, scratch)
    ctx.write(layout.BASIS_WEIGHTS, scratch)


def along_basis(
    parent: Parent,
    spanned: SpannedDocuments,
    weights: NDArray[np.float32],
    curvature: Sequence[ModuleCurvature],
    device: torch.device,
) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """How atoms of document weights (K, N) are best made of a basis: weights (K, R), and cosines (K,).

    What is made has unit norm, by the sums themselves. The cosines are by the documents' inner products:
    where these are known along directions alone, they are estimates.
    """
    stored = load_file(parent.read(layout.BASIS_WEIGHTS))["weights"]
    span = spanned.span
    own, basis = (span.combine(torch.from_numpy(part[:, spanned.used])) for part in (weights, stored))
    lengths = span.inner(own, own).diagonal().double().sqrt().clamp_min(1e-30)
    products = span.inner(own, basis).double() / lengths[:, None]
    combinations, cosines = nearest_combinations(span.inner(basis, basis), products)
    load, count = basis_gradients(parent, device)
    exact = accumulate_gram(curvature, load, [count]).double().cpu()
    norms = ((combinations @ exact) * combinations).sum(1).clamp_min(0).sqrt()
    made = combinations / norms.clamp_min(1e-30)[:, None]
    return made.float(), cosines.clamp_max(1).numpy()


def basis_gradients(parent: Parent, device: torch.device) -> tuple[LoadShard, int]:
    """The parent's sums of gradients as a shard of their own, and how many they are."""
    shard = GradientShards([parent.read(layout.BASIS)], device)
    return shard.shard, shard.sizes[0]


def of_raw_gradients(norms: NDArray[np.float64], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights of unit whitened rows (K, N) as weights of raw gradients; zero where there is no gradient.

    `norms` (N,) are the lengths of the whitened gradients.
    """
    # Divided in float64 and rounded once, a few at a time.
    return np.divide(weights, norms, out=np.zeros_like(weights), where=norms > 0, casting="same_kind")
