"""Steering vectors of every atom that enough documents use."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from atomscope.bundle import layout
from atomscope_workers.pipeline.atoms import memberships
from atomscope_workers.pipeline.vectors import (
    combined_vectors,
    nearest_combinations,
    steering_vector,
    vector_norm,
)
from atomscope_workers.stages.arrays import load_curvature
from atomscope_workers.stages.context import Parent, StageContext, UnitResult
from atomscope_workers.stages.dictionary import read_dictionary
from atomscope_workers.stages.evidence import stored_strengths
from atomscope_workers.stages.inputs import plan_device, read_plan, streamed_gradients
from atomscope_workers.stages.space import SpannedDocuments, spanned_documents

NORMS = "work/vector_norms.json"
"""Atom index -> Euclidean norm of its vector."""

COSINES = "work/vector_cosines.json"
"""Atom index -> cosine between its vector and the exact one, where vectors are sums of a parent's."""

HELD_BYTES = 2**30
"""Most bytes of vectors and their sums held at once; with more, the gradients are read again."""


def run(ctx: StageContext) -> UnitResult:
    """Write `vectors/NNNN.safetensors`: float32 tensors named and shaped as the LoRA parameters.

    Of a refit without gradients they are the sums of its parent's vectors that are nearest to the exact ones.
    """
    config = ctx.spec.config
    spanned = spanned_documents(ctx)
    codes = stored_strengths(ctx, spanned)
    kept = [member.index for member in memberships(codes, config.min_active)]
    curvature = load_curvature(ctx.read(layout.CURVATURE))
    dictionary = read_dictionary(ctx)
    norms: dict[int, float] = {}
    basis = None
    if "atoms" not in dictionary and ctx.parent is not None and config.gradients == "sketch":
        basis = _Basis(ctx.parent, spanned, dictionary["weights"][kept])
        cosines = zip(kept, basis.cosines.tolist(), strict=True)
        ctx.write_bytes(COSINES, msgspec.json.encode(dict(cosines)))
    if "atoms" in dictionary:
        batch = 1
    else:
        size = sum(rows * columns for rows, columns in (module.rotation.shape for module in curvature))
        batch = max(1, HELD_BYTES // (2 * 4 * size))
    for start in range(0, len(kept), batch):
        part = kept[start : start + batch]
        ctx.checkpoint()
        ctx.progress(start, len(kept), "steps")
        if "atoms" in dictionary:
            vectors = [steering_vector(dictionary["atoms"][part[0]], curvature, config.vector_power)]
        elif basis is not None:
            vectors = basis.combined(ctx, slice(start, start + len(part)))
        else:
            vectors = _combined(ctx, dictionary["weights"][part])
        for atom, vector in zip(part, vectors, strict=True):
            norms[atom] = vector_norm(vector)
            _write(ctx, atom, vector)
    ctx.write_bytes(NORMS, msgspec.json.encode(norms))
    steps = max(len(kept), 1)
    ctx.progress(steps, steps, "steps")
    return UnitResult()


def _combined(ctx: StageContext, weights: NDArray[np.float32]) -> list[dict[str, NDArray[np.float32]]]:
    """Vectors of atoms given by document weights (K, N), by one pass over the gradients."""
    plan = read_plan(ctx)
    norms = np.sqrt(spanned_documents(ctx).energy_total)
    # The weights are of rows of unit norm; of a row without a gradient they are zero.
    scaled = np.divide(weights, norms, out=np.zeros(weights.shape), where=norms > 0)

    return combined_vectors(
        torch.from_numpy(scaled).float(),
        load_curvature(ctx.read(layout.CURVATURE)),
        streamed_gradients(ctx, plan_device(plan)),
        [len(shard.documents) for shard in plan.shards],
        ctx.spec.config.vector_power,
    )


class _Basis:
    """The vectors of a refit's parent, and how the refit's atoms are best made of them.

    Vectors are linear in their atoms, so that weights which are right in the span of the documents are right
    for the vectors.
    """

    def __init__(self, parent: Parent, spanned: SpannedDocuments, weights: NDArray[np.float32]) -> None:
        """`weights` (K, N) are the document weights of the refit's atoms."""
        self._parent = parent
        stored = load_file(parent.read(layout.DICTIONARY))["weights"]
        self._atoms = [atom for atom in range(len(stored)) if parent.holds(layout.vector(atom))]
        span = spanned.span
        own, others = (
            span.combine(torch.from_numpy(np.ascontiguousarray(part[:, spanned.used])))
            for part in (weights, stored[self._atoms])
        )
        lengths = span.inner(own, own).diagonal().double().sqrt().clamp_min(1e-30)
        products = span.inner(own, others).double() / lengths[:, None]
        combinations, self.cosines = nearest_combinations(span.inner(others, others), products)
        self._weights = combinations.numpy()

    def combined(self, ctx: StageContext, part: slice) -> list[dict[str, NDArray[np.float32]]]:
        """The vectors of some of the atoms, by one pass over the parent's."""
        weights = self._weights[part]
        found: list[dict[str, NDArray[np.float32]]] = [{} for _ in weights]
        for place, atom in enumerate(self._atoms):
            ctx.checkpoint()
            tensors = load_file(self._parent.read(layout.vector(atom)))
            self._parent.forget(layout.vector(atom))
            for vector, weight in zip(found, weights[:, place].astype(np.float32), strict=True):
                for name, tensor in tensors.items():
                    vector[name] = vector[name] + weight * tensor if place else weight * tensor
        return found


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
