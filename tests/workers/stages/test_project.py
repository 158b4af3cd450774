"""Documents past the exact limit are sketched, whitened and raw."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors.numpy import load_file

from atomscope.bundle import layout
from atomscope.types.spec import AuditConfig
from atomscope_workers.pipeline.sketch import sketch_raw
from atomscope_workers.stages.arrays import load_sketch
from tests.workers.stages.units import Audit, clustered_gradients, extracted

DOCUMENTS = 24
CONFIG = AuditConfig(
    shard_documents=16, n_atoms=4, alpha=0.1, min_active=2, top_documents=4, fits=1, surrogates=0
)


def _projected(work: Path, **changes: int) -> Audit:
    config = msgspec.structs.replace(CONFIG, **changes)
    audit = extracted(work, clustered_gradients([0, 1, 2, 3] * (DOCUMENTS // 4)), config)
    audit.through("project")
    return audit


def test_whitened_and_raw_gradients_have_columns_of_their_own_under_auto(tmp_path: Path) -> None:
    audit = _projected(tmp_path / "auto", exact_documents=1)
    assert load_file(audit.file(layout.whitened_sketch(0)))["rows"].shape[1] == 16_384
    assert load_sketch([audit.file(layout.raw_sketch(0))]).shape[1] == 4096


def test_raw_gradients_are_sketched_for_coherence_where_documents_are_many(tmp_path: Path) -> None:
    """Outside of the bundle, which keeps a sketch of them only where it was asked to."""
    audit = _projected(tmp_path / "many", exact_documents=1, sketch_columns=64)
    stored = [load_file(audit.file(layout.raw_sketch(shard))) for shard in range(audit.shards)]
    gradients = clustered_gradients([0, 1, 2, 3] * (DOCUMENTS // 4))
    expected = sketch_raw(
        sorted(gradients),
        lambda name: torch.from_numpy(gradients[name]),
        DOCUMENTS,
        columns=64,
        seed=audit.spec.config.seed,
    )
    assert np.concatenate([part["document"] for part in stored]).tolist() == list(range(0, 3 * DOCUMENTS, 3))
    np.testing.assert_array_equal(np.concatenate([part["sketch"] for part in stored]), expected.numpy())
    assert not audit.file("sketches").exists()
    assert not _projected(tmp_path / "few").file("work/sketches").exists()
