"""Steering vectors of every atom that enough documents use."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from atomscope.bundle import layout
from atomscope_workers.pipeline.atoms import memberships
from atomscope_workers.pipeline.curvature import ModuleCurvature
from atomscope_workers.pipeline.vectors import combined_vectors, steering_vector, vector_norm
from atomscope_workers.stages.arrays import load_curvature
from atomscope_workers.stages.basis import (
    HELD_BYTES,
    LEAST_HELD,
    along_basis,
    basis_gradients,
    keep_basis,
    of_raw_gradients,
)
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.stages.dictionary import read_dictionary
from atomscope_workers.stages.evidence import stored_strengths
from atomscope_workers.stages.inputs import plan_device, read_plan, streamed_gradients
from atomscope_workers.stages.space import SpannedDocuments, spanned_documents

NORMS = "work/vector_norms.json"
"""Atom index -> Euclidean norm of its vector."""

COSINES = "work/vector_cosines.json"
"""Atom index -> cosine between its vector and the exact one, where vectors are made of a basis."""


def run(ctx: StageContext) -> UnitResult:
    """Write `vectors/NNNN.safetensors`: float32 tensors named and shaped as the LoRA parameters.

    Of a refit of `gradients: sketch` they are made of the basis that it kept.
    """
    config = ctx.spec.config
    spanned = spanned_documents(ctx)
    codes = stored_strengths(ctx, spanned)
    kept = [member.index for member in memberships(codes, config.min_active)]
    curvature = load_curvature(ctx.read(layout.CURVATURE))
    dictionary = read_dictionary(ctx)
    norms: dict[int, float] = {}
    sketched = config.gradients == "sketch" and "weights" in dictionary
    if sketched:
        keep_basis(ctx, spanned)
    basis = ctx.parent if sketched and kept else None
    combinations = torch.zeros(0, 0)
    if basis is not None:
        weights, device = dictionary["weights"][kept], plan_device(read_plan(ctx))
        combinations, cosines = along_basis(basis, spanned, weights, curvature, device)
        told = dict(zip(kept, cosines.tolist(), strict=True))
        ctx.write_bytes(COSINES, msgspec.json.encode(told))
    if "atoms" in dictionary:
        batch = 1
    else:
        size = sum(rows * columns for rows, columns in (module.rotation.shape for module in curvature))
        batch = max(LEAST_HELD, HELD_BYTES // (2 * 4 * size))
    for start in range(0, len(kept), batch):
        part = kept[start : start + batch]
        ctx.checkpoint()
        ctx.progress(start, len(kept), "steps")
        if "atoms" in dictionary:
            vectors = [steering_vector(dictionary["atoms"][part[0]], curvature, config.vector_power)]
        elif basis is not None:
            load, count = basis_gradients(basis, plan_device(read_plan(ctx)))
            made = combinations[start : start + len(part)]
            vectors = combined_vectors(made, curvature, load, [count], config.vector_power)
        else:
            vectors = _combined(ctx, spanned, curvature, dictionary["weights"][part])
        for atom, vector in zip(part, vectors, strict=True):
            norms[atom] = vector_norm(vector)
            _write(ctx, atom, vector)
    ctx.write_bytes(NORMS, msgspec.json.encode(norms))
    steps = max(len(kept), 1)
    ctx.progress(steps, steps, "steps")
    return UnitResult()


def _combined(
    ctx: StageContext,
    spanned: SpannedDocuments,
    curvature: Sequence[ModuleCurvature],
    weights: NDArray[np.float32],
) -> list[dict[str, NDArray[np.float32]]]:
    """Vectors of atoms given by document weights (K, N), by one pass over the gradients."""
    plan = read_plan(ctx)
    return combined_vectors(
        torch.from_numpy(of_raw_gradients(spanned, weights)),
        curvature,
        streamed_gradients(ctx, plan_device(plan)),
        [len(shard.documents) for shard in plan.shards],
        ctx.spec.config.vector_power,
    )


def _write(ctx: StageContext, atom: int, vector: dict[str, NDArray[np.float32]]) -> None:
    facts = {
        "atom": atom,
        "power": ctx.spec.config.vector_power,
        "adapter": ctx.spec.adapter.sha256,
        "direction": "adding it raises the behaviour",
    }
    scratch = ctx.scratch / "vector.safetensors"
    # One entry: safetensors writes several in no fixed order, and equal audits must give equal bytes.
    save_file(vector, scratch, metadata={"atomscope": json.dumps(facts)})
    ctx.write(layout.vector(atom), scratch)
