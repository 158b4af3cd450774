"""Lambda: the mean over all documents of the squared rotated gradients, summed shard by shard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from atomscope.bundle import layout
from atomscope.types.spec import AuditConfig
from atomscope_workers.stages import curvature, lambdas
from atomscope_workers.stages.arrays import load_curvature
from tests.workers.stages.units import SHAPES, extracted, random_gradients

CONFIG = AuditConfig(shard_documents=3)
SHARDS = 3


def test_lambda_of_the_whole_is_the_mean_over_the_documents_of_all_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the file of a shard is let go once it is added."""
    gradients = random_gradients(7)
    audit = extracted(tmp_path / "work", gradients, CONFIG)
    audit.run("eigenbases", "lambdas")
    ctx, gone = audit.context("curvature"), list[str]()
    monkeypatch.setattr(ctx, "forget", gone.append)
    curvature.run(ctx)
    assert gone == [layout.squared_sums(index) for index in range(SHARDS)]
    found = load_curvature(ctx.read(layout.CURVATURE))
    assert {module.name for module in found} == SHAPES.keys()
    for module in found:
        outputs, inputs = (
            basis.vectors.double() for basis in (module.rotation.outputs, module.rotation.inputs)
        )
        rotated = outputs.T @ torch.from_numpy(gradients[module.name]).double() @ inputs
        expected = rotated.square().mean(0).numpy()
        np.testing.assert_allclose(module.lambdas.numpy(), expected, rtol=1e-5)  # rotated in float32


def test_a_unit_reads_the_gradients_of_its_own_shard_alone(tmp_path: Path) -> None:
    """Whoever takes it: those of the others need not be there."""
    audit = extracted(tmp_path / "work", random_gradients(7), CONFIG)
    audit.run("eigenbases")
    for index in (0, 2):
        audit.file(layout.gradient_shard(index)).unlink()
    ctx = audit.context("lambdas", 1)
    assert lambdas.run(ctx).documents == 3
    assert ctx.written == [layout.squared_sums(1)]


def test_factors_alone_give_lambda_under_kfac(tmp_path: Path) -> None:
    audit = extracted(tmp_path / "work", random_gradients(7), AuditConfig(preconditioner="kfac"))
    audit.run("eigenbases", "lambdas", "curvature")
    assert not audit.file("work/lambdas").exists()
    for module in load_curvature(audit.file(layout.CURVATURE)):
        rotation = module.rotation
        assert module.lambdas.equal(torch.outer(rotation.outputs.values, rotation.inputs.values))
