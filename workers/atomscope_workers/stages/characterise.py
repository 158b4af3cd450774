"""What each atom is: its documents, coherence beside a random null, energy, keywords, rank."""

from __future__ import annotations

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from atomscope.bundle import layout, read_coefficients
from atomscope.types.atoms import Atom, DocumentRef
from atomscope_workers.pipeline.atoms import Membership, energy_retained, memberships, ranks
from atomscope_workers.pipeline.coherence import coherence_by_size, null_of_size, random_orders
from atomscope_workers.pipeline.keywords import distinctive_keywords
from atomscope_workers.pipeline.vectors import vector_norm
from atomscope_workers.stages.arrays import load_curvature, load_losses, load_projected
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.stages.inputs import gradient_shards, read_rows
from atomscope_workers.stages.validate import StoredRow
from atomscope_workers.stages.warned import keep

PREVIEW = 160
"""Characters of a document's text that are shown beside its number."""

FEW = 0.1
"""Share of the atoms learned below which the kept ones are called few."""


def run(ctx: StageContext) -> UnitResult:
    """Write `atoms/atoms.json`, ordered by rank."""
    config = ctx.spec.config
    ctx.progress(0, 2, "steps")
    documents, projected = load_projected([ctx.read(layout.projected_shard(i)) for i in range(ctx.shards)])
    dictionary = load_file(ctx.read(layout.DICTIONARY))
    codes = _codes(ctx, documents, len(dictionary["atoms"]))
    found = memberships(codes, config.min_active)
    top = [member.positive[: config.top_documents] for member in found]
    coherence, nulls = _coherence(ctx, top)
    ctx.progress(1, 2, "steps")
    ctx.checkpoint()
    rows = read_rows(ctx)
    texts = ["\n".join(turn["content"] for turn in rows[int(item)].messages) for item in documents]
    keywords = distinctive_keywords(texts, top)
    curvature = load_curvature(ctx.read(layout.CURVATURE))
    places = ranks(coherence, [member.n_active for member in found])

    def listed(member: Membership, positions: NDArray[np.int64]) -> list[DocumentRef]:
        return [
            DocumentRef(
                document=int(documents[position]),
                value=float(codes[position, member.index]),
                preview=_preview(rows[int(documents[position])]),
            )
            for position in positions[: config.top_documents]
        ]

    atoms = [
        Atom(
            index=member.index,
            rank=places[item],
            coherence=coherence[item],
            null_coherence=nulls[item][0],
            null_coherence_95=nulls[item][1],
            n_active=member.n_active,
            n_positive=len(member.positive),
            n_negative=len(member.negative),
            sign=int(dictionary["signs"][member.index]),
            mean_coefficient=member.mean_coefficient,
            energy_retained=energy_retained(top[item], projected.energy_kept, projected.energy_total),
            vector_norm=vector_norm(dictionary["atoms"][member.index], curvature, config.vector_power),
            keywords=keywords[item],
            top_documents=listed(member, member.positive),
            bottom_documents=listed(member, member.negative),
        )
        for item, member in enumerate(found)
    ]
    atoms.sort(key=lambda atom: atom.rank)
    ctx.write_bytes(layout.ATOMS, msgspec.json.format(msgspec.json.encode(atoms), indent=1))
    warnings = _warnings(len(atoms), len(dictionary["atoms"]), config.min_active)
    keep(ctx, warnings)
    ctx.progress(2, 2, "steps")
    return UnitResult(summary={"warnings": warnings, "n_atoms": len(atoms)})


def _warnings(kept: int, learned: int, min_active: int) -> list[str]:
    if not kept:
        return [f"this audit found nothing: none of {learned} atoms has {min_active} active documents"]
    if kept < FEW * learned:
        return [f"only {kept} of {learned} atoms have {min_active} active documents; try a smaller alpha"]
    return []


def _codes(ctx: StageContext, documents: NDArray[np.int64], atoms: int) -> NDArray[np.float64]:
    """Codes (N, K) in the order of `documents`."""
    stored = read_coefficients(ctx.read(layout.COEFFICIENTS))
    codes = np.zeros((len(documents), atoms))
    codes[np.searchsorted(documents, stored.document), stored.atom] = stored.value
    return codes


def _coherence(
    ctx: StageContext, top: list[NDArray[np.int64]]
) -> tuple[list[float], list[tuple[float, float]]]:
    """Coherence of every set, and the mean and 95th percentile of random sets of its size."""
    losses = load_losses([ctx.read(layout.shard_losses(index)) for index in range(ctx.shards)])
    candidates = np.flatnonzero(losses.gradient_norm > 0)
    random = random_orders(candidates, ctx.spec.config.top_documents, ctx.spec.config.seed)
    # A running sum on a CUDA device is not the same every time; these are few rows.
    gradients = gradient_shards(ctx, torch.device("cpu"))
    curves = coherence_by_size([*top, *random], gradients.names, gradients.rows, losses.gradient_norm)
    own, null = curves[: len(top)], curves[len(top) :]
    return (
        [float(curve[-1]) if len(curve) else 0.0 for curve in own],
        [null_of_size(null, len(members)) for members in top],
    )


def _preview(row: StoredRow) -> str:
    """The beginning of the first turn that is not the system's."""
    turns = [turn["content"] for turn in row.messages if turn["role"] != "system"]
    return (turns[0] if turns else "")[:PREVIEW]
