"""Parts of steering vectors: of atoms that are sums of documents, some LoRA parameters of all of them.

A unit reads of every gradient its own parameters alone, so that all units together read the gradients once,
however many atoms and workers there are.
"""

from __future__ import annotations

import msgspec
import torch
from safetensors.torch import save_file

from atomscope.bundle import layout
from atomscope.types.spec import AuditConfig
from atomscope_workers.pipeline.vectors import combined
from atomscope_workers.stages.arrays import CurvatureFile
from atomscope_workers.stages.basis import of_raw_gradients
from atomscope_workers.stages.by_parameter import (
    Part,
    curvature_by_parameter,
    own_part,
    parameter_gradients,
    units_combining,
)
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.stages.dictionary import read_dictionary
from atomscope_workers.stages.evidence import FOUND, Found
from atomscope_workers.stages.inputs import plan_device, read_plan
from atomscope_workers.stages.space import space_of


def run(ctx: StageContext) -> UnitResult:
    """Write `work/vectors/NNNN.safetensors`, one a parameter: float32 (atoms, d_out, d_in) under its name.

    Atoms are those of `work/evidence.json`, by index. Nothing is written where vectors are made otherwise: of
    kept components, or of the basis of a refit of `gradients: sketch`.
    """
    plan = read_plan(ctx)
    if not are_combined(ctx.spec.config, plan.n_documents, refit=ctx.parent is not None):
        return UnitResult()
    curvature = curvature_by_parameter(ctx)
    units = units_combining(ctx.shards, len(curvature.shapes))
    part = own_part(ctx.index, units, curvature.shapes, plan.n_documents)
    if part is None:
        return UnitResult()
    ctx.progress(0, part.documents, "documents")
    atoms = kept_atoms(ctx)
    if atoms:
        _combine(ctx, curvature, part, atoms)
    ctx.progress(part.documents, part.documents, "documents")
    return UnitResult(documents=part.documents)


def kept_atoms(ctx: StageContext) -> list[int]:
    """Indices of the atoms that have vectors: enough documents use them."""
    return sorted(msgspec.json.decode(ctx.read(FOUND).read_bytes(), type=Found).atoms)


def are_combined(config: AuditConfig, documents: int, *, refit: bool) -> bool:
    """Whether vectors are sums of the gradients of so many documents."""
    of_basis = config.gradients == "sketch" and refit
    return not of_basis and space_of(config, documents) != "components"


def _combine(ctx: StageContext, curvature: CurvatureFile, part: Part, atoms: list[int]) -> None:
    names, documents = part.names, part.documents
    plan, weights = read_plan(ctx), _raw_weights(ctx, atoms)
    load = parameter_gradients(ctx, names, plan_device(plan))
    sizes = [len(shard.documents) for shard in plan.shards]
    places = {name: place for place, name in enumerate(curvature.shapes)}
    for number, name in enumerate(names):
        ctx.checkpoint()
        ctx.progress(documents * number // len(names), documents, "documents")
        vectors = combined(weights, curvature.module(name), load, sizes, ctx.spec.config.vector_power)
        scratch = ctx.scratch / "part.safetensors"
        save_file({name: vectors}, scratch)
        ctx.write(layout.vector_part(places[name]), scratch)


def _raw_weights(ctx: StageContext, atoms: list[int]) -> torch.Tensor:
    """Weights (K, N) of the documents' raw gradients in the atoms."""
    dictionary = read_dictionary(ctx)
    return torch.from_numpy(of_raw_gradients(dictionary["norm"], dictionary["weights"][atoms]))
