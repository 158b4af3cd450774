"""Steering vectors of every atom that enough documents use."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from atomscope.bundle import layout
from atomscope.types.bundle import Plan
from atomscope_workers.pipeline.vectors import combined, steering_vector, vector_norm
from atomscope_workers.stages.arrays import load_curvature
from atomscope_workers.stages.basis import (
    HELD_BYTES,
    LEAST_HELD,
    along_basis,
    basis_gradients,
    keep_basis,
)
from atomscope_workers.stages.by_parameter import curvature_by_parameter
from atomscope_workers.stages.combine import are_combined, kept_atoms
from atomscope_workers.stages.context import Parent, StageContext, UnitResult
from atomscope_workers.stages.dictionary import read_dictionary
from atomscope_workers.stages.inputs import plan_device, read_shard_plan
from atomscope_workers.stages.space import space_of, spanned_documents
from atomscope_workers.stages.tensor_ranges import TensorRanges

LEAST_ATOMS = 64
"""Of a unit that has any: what each unit reads beside its own share is not to outweigh it."""
MADE = "work/made/"
"""Where each unit that made vectors tells of them."""

Vector = dict[str, NDArray[np.float32]]
MakeVectors = Callable[[int, int], list[Vector]]
"""The vectors of a unit's own atoms `start:stop`."""


class Made(msgspec.Struct, kw_only=True, frozen=True):
    """What is told of the vectors, by atom index."""

    norms: dict[int, float] = {}
    """Their Euclidean norms."""
    cosines: dict[int, float] = {}
    """Cosines between them and the exact ones, where they are made of a basis."""


def run(ctx: StageContext) -> UnitResult:
    """Write `vectors/NNNN.safetensors`: float32 tensors named and shaped as the LoRA parameters.

    A unit writes those of some atoms that follow each other. Of a refit of `gradients: sketch` they are made
    of the basis that it kept.
    """
    config = ctx.spec.config
    plan, shard = read_shard_plan(ctx)
    documents = len(shard.documents)
    ctx.progress(0, documents, "documents")
    if config.gradients == "sketch" and ctx.index == 0 and space_of(config, plan.n_documents) != "components":
        keep_basis(ctx)
    atoms = kept_atoms(ctx)
    units = min(ctx.shards, -(-len(atoms) // LEAST_ATOMS))
    if ctx.index < units:
        start, stop = (len(atoms) * edge // units for edge in (ctx.index, ctx.index + 1))
        _make(ctx, plan, atoms[start:stop], start, documents)
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


def _make(ctx: StageContext, plan: Plan, own: Sequence[int], first: int, documents: int) -> None:
    """Write the vectors of the atoms `own`, the first of which is the `first` of all."""
    cosines: dict[int, float] = {}
    if are_combined(ctx.spec.config, plan.n_documents, refit=ctx.parent is not None):
        make, step = _of_parts(ctx, first)
    elif space_of(ctx.spec.config, plan.n_documents) == "components" or ctx.parent is None:
        make, step = _of_components(ctx, own), 1
    else:
        make, step, cosines = _of_basis(ctx, ctx.parent, plan_device(plan), own)
    norms: dict[int, float] = {}
    for start in range(0, len(own), step):
        stop = min(start + step, len(own))
        ctx.checkpoint()
        ctx.progress(documents * start // len(own), documents, "documents")
        for atom, vector in zip(own[start:stop], make(start, stop), strict=True):
            norms[atom] = vector_norm(vector)
            _write(ctx, atom, vector)
    told = Made(norms=norms, cosines=cosines)
    ctx.write_bytes(f"{MADE}{ctx.index:04d}.json", msgspec.json.encode(told))


def _of_parts(ctx: StageContext, first: int) -> tuple[MakeVectors, int]:
    """From what `combine` left; and how many to make at once."""
    shapes = curvature_by_parameter(ctx).shapes
    files = {
        name: TensorRanges(partial(ctx.read_range, layout.vector_part(place)))
        for place, name in enumerate(shapes)
    }

    def make(start: int, stop: int) -> list[Vector]:
        rows = {name: file.rows(name, first + start, first + stop) for name, file in files.items()}
        return _apart(rows, stop - start)

    return make, max(1, _held(shapes.values()))


def _of_components(ctx: StageContext, own: Sequence[int]) -> MakeVectors:
    curvature = load_curvature(ctx.read(layout.CURVATURE))
    rows, power = read_dictionary(ctx)["atoms"], ctx.spec.config.vector_power
    return lambda start, stop: [steering_vector(rows[atom], curvature, power) for atom in own[start:stop]]


def _of_basis(
    ctx: StageContext, parent: Parent, device: torch.device, own: Sequence[int]
) -> tuple[MakeVectors, int, dict[int, float]]:
    """From the parent's basis; how many to make at once, and how near they come to the exact ones."""
    curvature = load_curvature(ctx.read(layout.CURVATURE))
    weights = read_dictionary(ctx)["weights"][list(own)]
    combinations, cosines = along_basis(parent, spanned_documents(ctx), weights, curvature, device)
    load, count = basis_gradients(parent, device)
    power = ctx.spec.config.vector_power

    def make(start: int, stop: int) -> list[Vector]:
        made = combinations[start:stop]
        return _apart(
            {module.name: combined(made, module, load, [count], power) for module in curvature}, len(made)
        )

    # The basis is read again for each step.
    step = max(LEAST_HELD, _held(module.rotation.shape for module in curvature))
    return make, step, dict(zip(own, cosines.tolist(), strict=True))


def _held(shapes: Iterable[Sequence[int]]) -> int:
    """Vectors of such parts, float32, that may be held: all together, and one by one."""
    return HELD_BYTES // (2 * 4 * sum(map(math.prod, shapes)))


def _apart(parts: Mapping[str, torch.Tensor], count: int) -> list[Vector]:
    """One vector an atom of parts (count, d_out, d_in)."""
    return [{name: part[place].clone().numpy() for name, part in parts.items()} for place in range(count)]


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
