"""Coherence of raw gradients: exact, or of their sketches, one shard's on the worker's disk at a time."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from atomscope.bundle import layout
from atomscope_workers.stages.coherence import coherence_of
from tests.workers.stages.units import CONFIG, clustered_gradients, extracted

CLUSTERS = [0, 1, 2, 3] * 5
TOP = [np.array([0, 4, 8, 12]), np.array([1, 2, 3]), np.array([7]), np.zeros(0, dtype=np.int64)]
ERROR = 0.03
"""Of the mean cosine of a few documents in 4,096 columns; one over their root is 0.016."""


def test_sketched_coherence_is_the_exact_one_within_its_error_and_lets_go_of_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = clustered_gradients(CLUSTERS, noise=0.6)
    few = msgspec.structs.replace(CONFIG, exact_documents=5, shard_documents=8)
    exact, sketched = (
        extracted(tmp_path / name, gradients, config) for name, config in (("exact", CONFIG), ("few", few))
    )
    for audit in (exact, sketched):
        audit.through("project")
    for shard in range(sketched.shards):
        sketched.file(layout.gradient_shard(shard)).unlink()
    ctx, gone = sketched.context("characterise"), list[str]()
    monkeypatch.setattr(ctx, "forget", gone.append)
    found, expected = coherence_of(ctx, TOP), coherence_of(exact.context("characterise"), TOP)
    assert gone == [layout.raw_sketch(0), layout.raw_sketch(1), layout.raw_sketch(2)]
    for own, other in zip(found, expected, strict=True):
        assert own.own == pytest.approx(other.own, abs=ERROR)
        assert own.null_mean == pytest.approx(other.null_mean, abs=ERROR)
        assert own.null_95 == pytest.approx(other.null_95, abs=ERROR)
    assert expected[0].own > 0.5 > expected[1].own
    assert [item.own for item in found[2:]] == [0, 0]
