"""Units that share the parameters: how many, the parameters of each, and what it reads of gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from atomscope.bundle import layout
from atomscope.types.spec import AuditConfig
from atomscope_workers.pipeline.storage import GradientDtype
from atomscope_workers.stages import by_parameter, inputs
from atomscope_workers.stages.gradient_file import GradientWriter
from tests.workers.stages.units import extracted, random_gradients

SHAPES = {"narrow": (4, 8), "wide": (8, 64), "other": (8, 64), "least": (2, 2), "tall": (64, 4)}


@pytest.mark.parametrize("units", [1, 2, 3, 5])
def test_each_parameter_is_one_units_the_largest_first_and_each_document_is_counted_once(units: int) -> None:
    parts = [by_parameter.own_part(index, units, SHAPES, 31) for index in range(units)]
    found = [part for part in parts if part is not None]
    assert len(found) == units
    assert sorted(name for part in found for name in part.names) == sorted(SHAPES)
    assert sum(part.documents for part in found) == 31
    sizes = [[np.prod(SHAPES[name]) for name in part.names] for part in found]
    assert all(own == sorted(own, reverse=True) for own in sizes)
    assert found[0].names[0] == "other"  # of two that are as large, by name
    assert by_parameter.own_part(units, units, SHAPES, 31) is None


@pytest.mark.parametrize(
    ("shards", "parameters", "gradient", "directions", "units"),
    [
        (500, 120, 460_800, 2048, 14),
        (500, 120, 40_000_000, 2048, 64),
        (500, 48, 40_000_000, 2048, 48),
        (3, 120, 40_000_000, 2048, 3),
        (500, 120, 2048, 2048, 1),
    ],
)
def test_units_share_parameters_as_long_as_their_products_stay_below_the_gradients(
    shards: int, parameters: int, gradient: int, directions: int, units: int
) -> None:
    assert by_parameter.units_along(shards, parameters, gradient, directions) == units


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_parameter_of_a_shard_is_what_the_whole_shard_holds_of_it(
    tmp_path: Path, dtype: GradientDtype
) -> None:
    gradients = random_gradients(7)
    audit = extracted(tmp_path / "work", gradients, AuditConfig(shard_documents=3))
    ctx = audit.context("combine")
    shapes = {name: value.shape[1:] for name, value in gradients.items()}
    for shard in audit.plan().shards:
        path, rows = ctx.scratch / "gradients", np.array(shard.documents)
        with GradientWriter(path, rows, shapes, dtype) as writer:
            values = {name: torch.from_numpy(value[rows // 3]) for name, value in gradients.items()}
            writer.write(shard.documents, values)
        ctx.write(layout.gradient_shard(shard.index), path)
    cpu = torch.device("cpu")
    whole, one = (
        inputs.gradient_shards(ctx, cpu),
        by_parameter.parameter_gradients(ctx, sorted(gradients), cpu),
    )
    for index in (2, 0, 1):
        for name in gradients:
            found = one(index, name)
            assert found.dtype == torch.float32
            assert torch.equal(found, whole.shard(index, name))
