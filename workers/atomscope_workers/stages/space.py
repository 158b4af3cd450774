"""The space in which documents are compared, and its documents as a span.

- `gram`: `ekfac-full` with every inner product kept, up to `exact_documents` documents.
- `directions`: `ekfac-full` past that, by coordinates along the directions in which documents vary most.
- `components`: `ekfac` and `kfac`, in the components kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from atomscope.bundle import layout
from atomscope.types.spec import AuditConfig, AuditSpec
from atomscope_workers.pipeline.direction_span import direction_span
from atomscope_workers.pipeline.projection import ProjectedRows
from atomscope_workers.pipeline.span import Span, unit_gram, unit_rows
from atomscope_workers.stages.arrays import load_gram, load_projected
from atomscope_workers.stages.context import Parent, StageContext
from atomscope_workers.stages.inputs import read_plan
from atomscope_workers.stages.sketch_columns import whitened_columns
from atomscope_workers.stages.versions import software_versions

Space = Literal["gram", "directions", "components"]

CPU = torch.device("cpu")

HELD = "work/held_by_parent.json"
"""Of a refit: what `held_by_parent` tells."""


def space_of(config: AuditConfig, documents: int) -> Space:
    """Which space an audit of so many documents works in."""
    if config.preconditioner != "ekfac-full":
        return "components"
    return "gram" if documents <= config.exact_documents else "directions"


def same_whitening(spec: AuditSpec, parent: Parent, documents: int) -> bool:
    """Whether the whitened documents of a refit's parent are what the refit would compute."""
    own, other = spec.config, parent.spec.config
    space = space_of(own, documents)
    if space != space_of(other, documents) or parent.spec.versions != software_versions():
        return False
    decisive = {
        "gram": ("preconditioner", "damping"),
        "components": ("preconditioner", "damping", "components"),
        "directions": ("preconditioner", "damping", "directions", "seed"),
    }[space]
    if space == "directions" and whitened_columns(own, documents) != whitened_columns(other, documents):
        return False
    return all(getattr(own, name) == getattr(other, name) for name in decisive)


def held_by_parent(ctx: StageContext) -> bool:
    """Whether a refit's parent holds the whitened documents that it would compute, as `validate` found.

    Found once: later units may run elsewhere, and all are to do the same.
    """
    return ctx.parent is not None and msgspec.json.decode(ctx.read(HELD).read_bytes(), type=bool)


def finds_directions(ctx: StageContext, documents: int) -> bool:
    """Whether the directions of so many documents are to be found."""
    return space_of(ctx.spec.config, documents) == "directions" and not held_by_parent(ctx)


@dataclass(frozen=True)
class SpannedDocuments:
    """The documents of an audit in their space, but for those without a gradient, which have no direction."""

    space: Space
    documents: NDArray[np.int64]
    """(N,): physical rows, in the order of the shards."""
    used: NDArray[np.int64]
    """(n,): positions among them of the documents of `span`."""
    span: Span
    energy_kept: NDArray[np.float64]
    """(N,): squared whitened norm over the coordinates that are kept."""
    energy_total: NDArray[np.float64]
    """(N,): the same over every coordinate."""


def spanned_documents(ctx: StageContext, device: torch.device = CPU) -> SpannedDocuments:
    """The audit's documents, their span on `device`."""
    space = space_of(ctx.spec.config, read_plan(ctx).n_documents)
    if space == "gram":
        documents, gram = load_gram(ctx.read(layout.GRAM))
        norms = gram.diagonal().double().numpy()
        used = np.flatnonzero(norms > 0)
        if len(used) < len(norms):
            positions = torch.from_numpy(used)
            gram = gram[positions][:, positions]
        return SpannedDocuments(space, documents, used, unit_gram(gram).to(device), norms, norms)
    if space == "directions":
        return spanned_along(*load_projected([ctx.read(layout.DIRECTIONS)]), device)
    documents, projected = load_projected([ctx.read(layout.projected_shard(i)) for i in range(ctx.shards)])
    norms = np.linalg.norm(projected.rows.astype(np.float64), axis=1)
    if not np.isfinite(norms).all():
        raise ValueError(f"{int((~np.isfinite(norms)).sum())} whitened rows are not finite")
    used = np.flatnonzero(norms > 0)
    rows = torch.from_numpy(projected.rows[used])
    return SpannedDocuments(
        space, documents, used, unit_rows(rows).to(device), projected.energy_kept, projected.energy_total
    )


def spanned_along(
    documents: NDArray[np.int64], projected: ProjectedRows, device: torch.device
) -> SpannedDocuments:
    """The documents of an audit whose unit rows (N, R) float32 are coordinates along directions."""
    energy = projected.energy_total
    used = np.flatnonzero(energy > 0)
    span = direction_span(torch.from_numpy(projected.rows[used]).to(device))
    return SpannedDocuments("directions", documents, used, span, energy, energy)
