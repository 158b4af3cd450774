"""Parts of vectors: each unit makes some parameters of all atoms, and reads no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from atomscope.bundle import layout
from atomscope.types.spec import AuditConfig
from atomscope_workers.stages import combine
from atomscope_workers.stages.arrays import load_curvature
from atomscope_workers.stages.basis import of_raw_gradients
from atomscope_workers.stages.dictionary import read_dictionary
from atomscope_workers.stages.registry import STAGE_FUNCTIONS
from tests.workers.stages.units import (
    CONFIG,
    SHAPES,
    Audit,
    bytes_read,
    clustered_gradients,
    extracted,
    gradient_bytes,
)

CLUSTERS = [0, 1, 2, 3] * 4


def _to_evidence(work: Path, config: AuditConfig = CONFIG) -> Audit:
    audit = extracted(work, clustered_gradients(CLUSTERS), config)
    audit.through("evidence")
    return audit


@pytest.mark.parametrize("space", [{}, {"exact_documents": 1, "sketch_columns": 256, "directions": 6}])
def test_parts_are_the_sums_of_the_documents_taken_back(tmp_path: Path, space: dict[str, Any]) -> None:
    """v = -Q_S (sum of w_i R_i / (lambda + damping)^(1/2)) Q_A^T under power 0, in float64."""
    audit = _to_evidence(tmp_path / "work", msgspec.structs.replace(CONFIG, **space))
    audit.run("combine")
    ctx = audit.context("vectors")
    dictionary, atoms = read_dictionary(ctx), combine.kept_atoms(ctx)
    weights = of_raw_gradients(dictionary["norm"], dictionary["weights"][atoms]).astype(np.float64)
    gradients = clustered_gradients(CLUSTERS)
    parts: dict[str, Any] = {}
    for place, name in enumerate(sorted(SHAPES)):
        own = load_file(audit.file(layout.vector_part(place)))
        assert own.keys() == {name}
        parts |= own
    for module in load_curvature(audit.file(layout.CURVATURE)):
        outputs, inputs = (
            basis.vectors.double().numpy() for basis in (module.rotation.outputs, module.rotation.inputs)
        )
        summed = np.einsum("kn,nij->kij", weights, gradients[module.name].astype(np.float64))
        scale = np.sqrt(module.lambdas.numpy() + module.damping)
        expected = -(outputs @ (outputs.T @ summed @ inputs / scale) @ inputs.T)
        found = parts[module.name]
        assert (found.dtype, found.shape) == (np.float32, (len(atoms), *SHAPES[module.name]))
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_a_unit_reads_its_own_parameters_of_every_gradient_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = _to_evidence(tmp_path / "work")
    read = bytes_read(audit, "combine", monkeypatch)
    assert set(map(layout.gradient_shard, range(audit.shards))) < read.keys()
    for shard in range(audit.shards):
        gradients, header = gradient_bytes(audit, shard)
        # Two units have a parameter each, and read the header.
        assert read[layout.gradient_shard(shard)] == gradients + 2 * header


def test_where_vectors_are_made_otherwise_nothing_is_combined(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, preconditioner="ekfac", solver="sklearn", codes="signed")
    audit = _to_evidence(tmp_path / "work", config)
    assert audit.planned["combine"] == 0
    STAGE_FUNCTIONS["combine"](audit.context("combine"))  # nor by the unit of a control that does not plan
    assert not audit.file("work/vectors").exists()
