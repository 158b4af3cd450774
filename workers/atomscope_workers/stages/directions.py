"""The directions along which many documents vary most, as weights of the documents.

They are found twice: in the sketches of all shards, and in the exact products of the documents with what was
found there (`along`).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from atomscope.bundle import layout
from atomscope_workers.pipeline.directions import sharpened_directions, sketched_directions
from atomscope_workers.pipeline.span import unit_rows
from atomscope_workers.stages.along import summed_products
from atomscope_workers.stages.arrays import load_projected
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.stages.determinism import deterministic
from atomscope_workers.stages.inputs import plan_device, read_plan
from atomscope_workers.stages.space import finds_directions


def run(ctx: StageContext) -> UnitResult:
    """Write `work/directions.safetensors`, or `work/directions_again.safetensors`.

    They hold `weights` (N, R) float32 of the documents' unit whitened gradients, `norm` (N,) float64, the
    lengths of these, and `document` (N,) int64, the physical rows. Nothing is written where documents are
    compared otherwise, or a refit has its parent's coordinates.
    """
    plan = read_plan(ctx)
    ctx.progress(0, 1, "steps")
    if finds_directions(ctx, plan.n_documents):
        device = plan_device(plan)
        with deterministic(device):
            (_again if ctx.stage == "directions_again" else _first)(ctx, device)
    ctx.progress(1, 1, "steps")
    return UnitResult()


def _first(ctx: StageContext, device: torch.device) -> None:
    paths = [ctx.read(layout.whitened_sketch(index)) for index in range(ctx.shards)]
    documents, projected = load_projected(paths)
    norms = np.sqrt(projected.energy_total)
    if not np.isfinite(norms).all():
        raise ValueError(f"{int((~np.isfinite(norms)).sum())} whitened rows are not finite")
    rows = unit_rows(torch.from_numpy(projected.rows[norms > 0]).to(device)).rows
    config = ctx.spec.config
    _write(ctx, sketched_directions(rows, config.directions, config.seed), documents, norms)


def _again(ctx: StageContext, device: torch.device) -> None:
    found = load_file(ctx.read(layout.direction_weights("directions")))
    norms: NDArray[np.float64] = found["norm"]
    products = summed_products(ctx, "along")[torch.from_numpy(norms > 0)]
    _write(ctx, sharpened_directions(products.to(device)), found["document"], norms)


def _write(
    ctx: StageContext, found: torch.Tensor, documents: NDArray[np.int64], norms: NDArray[np.float64]
) -> None:
    """`found` (n, R) are weights of the documents that have a gradient."""
    weights = np.zeros((len(documents), found.shape[1]), dtype=np.float32)
    weights[norms > 0] = found.cpu().numpy()
    scratch = ctx.scratch / "weights.safetensors"
    save_file({"document": documents, "norm": norms, "weights": weights}, scratch)
    ctx.write(layout.direction_weights(ctx.stage), scratch)
