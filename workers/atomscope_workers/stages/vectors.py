"""Steering vectors of every atom that was kept."""

from __future__ import annotations

import json

import msgspec
from safetensors.numpy import load_file, save_file

from atomscope.bundle import layout
from atomscope.types.atoms import Atom
from atomscope_workers.pipeline.vectors import steering_vector
from atomscope_workers.stages.arrays import load_curvature
from atomscope_workers.stages.context import StageContext, UnitResult


def run(ctx: StageContext) -> UnitResult:
    """Write `vectors/NNNN.safetensors`: float32 tensors named and shaped as the LoRA parameters."""
    spec = ctx.spec
    atoms = msgspec.json.decode(ctx.read(layout.ATOMS).read_bytes(), type=list[Atom])
    rows = load_file(ctx.read(layout.DICTIONARY))["atoms"]
    curvature = load_curvature(ctx.read(layout.CURVATURE))
    scratch = ctx.scratch / "vector.safetensors"
    for done, atom in enumerate(atoms):
        ctx.checkpoint()
        ctx.progress(done, len(atoms), "steps")
        facts = {
            "atom": atom.index,
            "power": spec.config.vector_power,
            "adapter": spec.adapter.sha256,
            "direction": "adding it raises the behaviour",
        }
        vector = steering_vector(rows[atom.index], curvature, spec.config.vector_power)
        # One entry: safetensors writes several in no fixed order, and equal audits must give equal bytes.
        save_file(vector, scratch, metadata={"atomscope": json.dumps(facts)})
        ctx.write(layout.vector(atom.index), scratch)
    steps = max(len(atoms), 1)
    ctx.progress(steps, steps, "steps")
    return UnitResult()
