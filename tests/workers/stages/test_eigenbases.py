"""Eigenbases of every shard's sums, which are on the worker's disk one file at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from atomscope.bundle import layout
from atomscope.types.spec import AuditConfig
from atomscope_workers.pipeline.curvature import rotations
from atomscope_workers.pipeline.factors import reduce_factors
from atomscope_workers.stages import eigenbases
from atomscope_workers.stages.arrays import load_factors
from tests.workers.stages.units import extracted, random_gradients


def test_the_sums_of_a_shard_are_let_go_once_they_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = extracted(tmp_path / "work", random_gradients(7), AuditConfig(shard_documents=3))
    ctx, gone = audit.context("eigenbases"), list[str]()
    monkeypatch.setattr(ctx, "forget", gone.append)
    eigenbases.run(ctx)
    paths = [layout.factor_sums(index) for index in range(3)]
    assert gone == paths
    expected = rotations(reduce_factors(load_factors(ctx.read(path)) for path in paths))
    found = eigenbases.read_rotations(ctx)
    assert [rotation.name for rotation in found] == [rotation.name for rotation in expected]
    for own, other in zip(found, expected, strict=True):
        assert own.inputs.vectors.equal(other.inputs.vectors)
        assert own.outputs.values.equal(other.outputs.values)
