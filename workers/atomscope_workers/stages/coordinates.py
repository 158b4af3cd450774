"""The coordinates of many documents along directions, put together of what `along_again` left."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.numpy import load_file

from atomscope.bundle import layout
from atomscope.types.atoms import AuditReport
from atomscope_workers.pipeline.directions import coordinates
from atomscope_workers.pipeline.gram import cosine_error
from atomscope_workers.pipeline.projection import ProjectedRows
from atomscope_workers.stages.along import summed_products
from atomscope_workers.stages.arrays import load_projected, save_projected
from atomscope_workers.stages.context import Parent, StageContext
from atomscope_workers.stages.project import EXACT_PRODUCTS
from atomscope_workers.stages.sketch_columns import whitened_columns
from atomscope_workers.stages.space import SpannedDocuments, spanned_along

DIRECTION_FACTS = "work/directions.json"
"""How much of the documents lies along the directions, and how near their cosines come."""


def make_coordinates(ctx: StageContext, device: torch.device) -> SpannedDocuments:
    """Write `projected/directions.safetensors`: the audit's documents, their span on `device`.

    `rows` (N, R) float32 are those of unit documents, zero where one has no gradient; `energy_kept` and
    `energy_total` (N,) float64 the squared norms of whitened gradients.
    """
    found = load_file(ctx.read(layout.direction_weights("directions_again")))
    documents, norms, used = found["document"], found["norm"], np.flatnonzero(found["norm"] > 0)
    weights = torch.from_numpy(found.pop("weights"))[torch.from_numpy(used)].to(device)
    products = summed_products(ctx, "along_again")[torch.from_numpy(used)].to(device)
    rows = coordinates(weights, products)
    del weights, products  # each as large as the coordinates
    whole = np.zeros((len(documents), rows.shape[1]), dtype=np.float32)
    whole[used] = rows.cpu().numpy()
    del rows
    energy = np.square(norms)
    projected = ProjectedRows(whole, energy, energy)
    scratch = ctx.scratch / "directions.safetensors"
    save_projected(documents, projected, scratch)
    ctx.write(layout.DIRECTIONS, scratch)
    spanned = spanned_along(documents, projected, device)
    ctx.write_bytes(DIRECTION_FACTS, msgspec.json.encode(_facts(ctx, spanned)))
    return spanned


def adopt_coordinates(ctx: StageContext, parent: Parent, device: torch.device) -> SpannedDocuments:
    """The same of a refit whose parent holds the coordinates that it would make."""
    ctx.adopt(layout.DIRECTIONS)
    if parent.holds(DIRECTION_FACTS):
        ctx.adopt(DIRECTION_FACTS)
    else:
        report = msgspec.json.decode(parent.read(layout.REPORT).read_bytes(), type=AuditReport)
        ctx.write_bytes(DIRECTION_FACTS, msgspec.json.encode(report.details["directions"]))
    return spanned_along(*load_projected([parent.read(layout.DIRECTIONS)]), device)


def _facts(ctx: StageContext, spanned: SpannedDocuments) -> dict[str, Any]:
    exact = torch.from_numpy(load_file(ctx.read(EXACT_PRODUCTS))["gram"])
    measured = torch.from_numpy(spanned.used[spanned.used < len(exact)])
    span = spanned.span
    cosines = span.cosines(torch.arange(len(measured), device=span.device)).cpu()
    rows = span.coordinates()
    return {
        "directions": rows.shape[1],
        "sketch_columns": whitened_columns(ctx.spec.config, len(spanned.documents)),
        "share_along": float(torch.linalg.vector_norm(rows)) ** 2 / max(1, len(rows)),
        "documents_measured": len(measured),
        "cosine_error": cosine_error(cosines, exact[measured][:, measured]),
    }
