"""Steering vectors of every atom that enough documents use."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from atomscope.bundle import layout
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
from atomscope_workers.stages.context import Parent, StageContext, UnitResult
from atomscope_workers.stages.dictionary import read_dictionary
from atomscope_workers.stages.evidence import FOUND, Found
from atomscope_workers.stages.inputs import plan_device, read_plan, read_shard_plan, streamed_gradients
from atomscope_workers.stages.space import space_of, spanned_documents

MADE = "work/vectors/"
"""Where each unit that made vectors tells of them."""

Vector = dict[str, NDArray[np.float32]]
MakeVectors = Callable[[Sequence[int]], list[Vector]]
"""The vectors of these atoms."""


class Made(msgspec.Struct, kw_only=True, frozen=True):
    """What is told of the vectors, by atom index."""

    norms: dict[int, float] = {}
    """Their Euclidean norms."""
    cosines: dict[int, float] = {}
    """Cosines between them and the exact ones, where they are made of a basis."""


def run(ctx: StageContext) -> UnitResult:
    """Write `vectors/NNNN.safetensors`: float32 tensors named and shaped as the LoRA parameters.

    What one pass over the gradients makes is a share of the atoms; of the shares a unit makes every
    `shards`-th, from its own index on. Of a refit of `gradients: sketch` they are made of the basis that it
    kept.
    """
    config = ctx.spec.config
    plan, shard = read_shard_plan(ctx)
    documents = len(shard.documents)
    ctx.progress(0, documents, "documents")
    components = space_of(config, plan.n_documents) == "components"
    if config.gradients == "sketch" and not components and ctx.index == 0:
        keep_basis(ctx, spanned_documents(ctx))
    atoms = sorted(msgspec.json.decode(ctx.read(FOUND).read_bytes(), type=Found).atoms)
    # Most units have no share, and read nothing large to know it.
    if ctx.index * (1 if components else LEAST_HELD) < len(atoms):
        _make(ctx, atoms, documents, components=components)
    ctx.progress(documents, documents, "documents")
    return UnitResult(documents=documents)


def read_made(ctx: StageContext) -> Made:
    """What all units told of their vectors."""
    told = [
        msgspec.json.decode(ctx.read(path).read_bytes(), type=Made)
        for path in ctx.outputs()
        if path.startswith(MADE)
    ]
    return Made(
        norms={atom: norm for made in told for atom, norm in made.norms.items()},
        cosines={atom: cosine for made in told for atom, cosine in made.cosines.items()},
    )


def _make(ctx: StageContext, atoms: Sequence[int], documents: int, *, components: bool) -> None:
    curvature = load_curvature(ctx.read(layout.CURVATURE))
    numbers = sum(rows * columns for rows, columns in (module.rotation.shape for module in curvature))
    size = 1 if components else max(LEAST_HELD, HELD_BYTES // (2 * 4 * numbers))
    shares = [atoms[start : start + size] for start in range(0, len(atoms), size)][ctx.index :: ctx.shards]
    if not shares:
        return
    dictionary = read_dictionary(ctx)
    norms: dict[int, float] = {}
    cosines: dict[int, float] = {}
    if components:
        make = _of_components(ctx, curvature, dictionary["atoms"])
    elif ctx.spec.config.gradients == "sketch" and ctx.parent is not None:
        own = [atom for share in shares for atom in share]
        make, cosines = _of_basis(ctx, ctx.parent, curvature, own, dictionary["weights"])
    else:
        make = _of_documents(ctx, curvature, dictionary["weights"], dictionary["norm"])
    for number, share in enumerate(shares):
        ctx.checkpoint()
        ctx.progress(documents * number // len(shares), documents, "documents")
        for atom, vector in zip(share, make(share), strict=True):
            norms[atom] = vector_norm(vector)
            _write(ctx, atom, vector)
    told = Made(norms=norms, cosines=cosines)
    ctx.write_bytes(f"{MADE}{ctx.index:04d}.json", msgspec.json.encode(told))


def _of_components(
    ctx: StageContext, curvature: Sequence[ModuleCurvature], rows: NDArray[np.float32]
) -> MakeVectors:
    """From dictionary rows (K, k_total)."""
    power = ctx.spec.config.vector_power
    return lambda atoms: [steering_vector(rows[atom], curvature, power) for atom in atoms]


def _of_documents(
    ctx: StageContext,
    curvature: Sequence[ModuleCurvature],
    weights: NDArray[np.float32],
    norms: NDArray[np.float64],
) -> MakeVectors:
    """From document weights (K, N) and lengths (N,) of whitened gradients, by one pass over the raw ones."""
    plan = read_plan(ctx)
    sizes = [len(shard.documents) for shard in plan.shards]

    def make(atoms: Sequence[int]) -> list[Vector]:
        raw = torch.from_numpy(of_raw_gradients(norms, weights[atoms]))
        load = streamed_gradients(ctx, plan_device(plan))
        return combined_vectors(raw, curvature, load, sizes, ctx.spec.config.vector_power)

    return make


def _of_basis(
    ctx: StageContext,
    parent: Parent,
    curvature: Sequence[ModuleCurvature],
    own: Sequence[int],
    weights: NDArray[np.float32],
) -> tuple[MakeVectors, dict[int, float]]:
    """From the parent's basis, and how near the vectors of the atoms `own` come to the exact ones."""
    device = plan_device(read_shard_plan(ctx)[0])
    combinations, cosines = along_basis(parent, spanned_documents(ctx), weights[own], curvature, device)
    places = {atom: place for place, atom in enumerate(own)}

    def make(atoms: Sequence[int]) -> list[Vector]:
        load, count = basis_gradients(parent, device)
        made = combinations[[places[atom] for atom in atoms]]
        return combined_vectors(made, curvature, load, [count], ctx.spec.config.vector_power)

    return make, dict(zip(own, cosines.tolist(), strict=True))


def _write(ctx: StageContext, atom: int, vector: Vector) -> None:
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
