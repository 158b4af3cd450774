"""The coordinates of many documents along directions, put together of what `along_again` left."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.numpy import load_file

from atomscope.bundle import layout
from atomscope.types.atoms import AuditReport
from atomscope_workers.pipeline.directions import coordinates, cosine_error
from atomscope_workers.pipeline.projection import ProjectedRows
from atomscope_workers.stages.along import summed_products
from atomscope_workers.stages.arrays import load_projected, save_projected
from atomscope_workers.stages.context import Parent, StageContext
from atomscope_workers.stages.project import COSINES
from atomscope_workers.stages.sketch_columns import whitened_columns
from atomscope_workers.stages.space import SpannedDocuments, spanned_along

DIRECTION_FACTS = "work/directions.json"
"""How much of the documents lies along the directions, and how near their cosines come."""


def make_coordinates(ctx: StageContext, device: torch.device) -> SpannedDocuments:
    """Write `projected/directions.safetensors`: the audit's documents, their span on `device`.

    Its rows (N, R) are those of unit documents, zero where a document has no gradient.
    """
    found = load_file(ctx.read(layout.direction_weights("directions_again")))
    documents, norms = found["document"], found["norm"]
    used = np.flatnonzero(norms > 0)
    products = summed_products(ctx, "along_again", len(found["weights"]))[torch.from_numpy(used)].to(device)
    rows = coordinates(torch.from_numpy(found["weights"][:, used]).to(device), products)
    whole = np.zeros((len(documents), rows.shape[1]), dtype=np.float32)
    whole[used] = rows.cpu().numpy()
    energy = np.square(norms)
    projected = ProjectedRows(whole, energy, energy)
    scratch = ctx.scratch / "directions.safetensors"
    save_projected(documents, projected, scratch)
    ctx.write(layout.DIRECTIONS, scratch)
    spanned = spanned_along(documents, projected, device)
    ctx.write_bytes(DIRECTION_FACTS, msgspec.json.encode(_facts(ctx, spanned, rows)))
    return spanned


def adopt_coordinates(ctx: StageContext, parent: Parent, device: torch.device) -> SpannedDocuments:
    """The same of a refit whose parent holds the coordinates that it would make."""
    ctx.adopt(layout.DIRECTIONS)
    report = msgspec.json.decode(parent.read(layout.REPORT).read_bytes(), type=AuditReport)
    ctx.write_bytes(DIRECTION_FACTS, msgspec.json.encode(report.details["directions"]))
    return spanned_along(*load_projected([parent.read(layout.DIRECTIONS)]), device)


def _facts(ctx: StageContext, spanned: SpannedDocuments, rows: torch.Tensor) -> dict[str, Any]:
    exact = torch.from_numpy(load_file(ctx.read(COSINES))["gram"])
    measured = torch.from_numpy(spanned.used[spanned.used < len(exact)])
    cosines = spanned.span.cosines(torch.arange(len(measured), device=rows.device)).cpu()
    return {
        "directions": rows.shape[1],
        "sketch_columns": whitened_columns(ctx.spec.config, len(spanned.documents)),
        "share_along": float(rows.double().square().sum()) / max(1, len(rows)),
        "documents_measured": len(measured),
        "cosine_error": cosine_error(cosines, exact[measured][:, measured]),
    }
