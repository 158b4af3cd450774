"""The Gram matrix of every whitened coordinate, and the sketch that takes its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atomscope_workers.pipeline import gram as gram_module
from atomscope_workers.pipeline.gram import accumulate_gram, blocks, cosine_error
from atomscope_workers.pipeline.sketch import sketch_raw, sketch_rows
from atomscope_workers.pipeline.vectors import combined, nearest_combinations
from tests.workers.pipeline.spans import SHAPES, curvature_of, gradients, in_shards, whitened

SIZES = [5, 5, 3]


def _cosines(rows: torch.Tensor) -> torch.Tensor:
    unit = rows.double() / rows.double().norm(dim=1, keepdim=True)
    return unit @ unit.T


DIMENSION = sum(rows * columns for rows, columns in SHAPES.values())


@pytest.mark.parametrize("tile", [1, 4, 512])
def test_the_gram_matrix_is_that_of_all_whitened_coordinates(
    tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram_module, "TILE", tile)
    found = gradients(13)
    curvature = curvature_of(found)
    gram = accumulate_gram(curvature, in_shards(found, SIZES), SIZES)
    dense = whitened(found, curvature)
    assert dense.shape == (13, DIMENSION)
    torch.testing.assert_close(gram, dense @ dense.T, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("limit", [1, 1000, 2**30])
def test_blocks_cover_every_coordinate_once_whatever_their_size(limit: int) -> None:
    found = gradients(13)
    seen = {name: np.zeros(shape, dtype=int) for name, shape in SHAPES.items()}
    for block in blocks(curvature_of(found), 13, limit):
        seen[block.module.name][block.part] += 1
    assert all((count == 1).all() for count in seen.values())


def test_the_sketch_does_not_depend_on_the_shards() -> None:
    found = gradients(13)
    curvature = curvature_of(found)
    whole, energy = sketch_rows(curvature, lambda name: found[name], 13, columns=64, seed=3)
    load = in_shards(found, SIZES)
    parts = [
        sketch_rows(curvature, lambda name, shard=shard: load(shard, name), size, columns=64, seed=3)[0]
        for shard, size in enumerate(SIZES)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)
    exact = whitened(found, curvature).square().sum(1)
    torch.testing.assert_close(energy, exact, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("columns", [256, 4096])
def test_the_sketch_keeps_cosines_within_its_stated_error(columns: int) -> None:
    """The root mean square error of a cosine is about one over the square root of the columns."""
    found = gradients(40)
    curvature = curvature_of(found)
    dense = whitened(found, curvature)
    dense = dense / dense.norm(dim=1, keepdim=True)
    gram = dense @ dense.T
    errors: list[float] = []
    for seed in range(8):
        rows, _ = sketch_rows(curvature, lambda name: found[name], 40, columns=columns, seed=seed)
        unit = rows.double() / rows.double().norm(dim=1, keepdim=True)
        off = ~torch.eye(40, dtype=torch.bool)
        errors.append(float((unit @ unit.T - gram)[off].square().mean().sqrt()))
        assert cosine_error(unit @ unit.T, 9 * gram) == pytest.approx(errors[-1], rel=1e-6)
    assert np.mean(errors) < 1.3 / columns**0.5


def test_the_error_of_the_sketch_falls_as_one_over_the_root_of_its_columns() -> None:
    """The slope of its logarithm, over six doublings of the columns, is minus a half."""
    found = gradients(40)
    curvature = curvature_of(found)
    dense = whitened(found, curvature)
    widths = [64, 128, 256, 512, 1024, 2048, 4096]

    def error(columns: int) -> float:
        """Root mean square over pairs and seeds."""
        rows = (
            sketch_rows(curvature, lambda name: found[name], 40, columns=columns, seed=seed)[0]
            for seed in range(20)
        )
        return float(np.sqrt(np.mean([cosine_error(_cosines(item), dense @ dense.T) ** 2 for item in rows])))

    errors = [error(columns) for columns in widths]
    slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.05)


def test_a_sketch_of_raw_gradients_keeps_their_cosines_whatever_the_shards() -> None:
    found = gradients(40)
    raw = torch.cat([part.flatten(1) for part in found.values()], dim=1).double()
    rows = sketch_raw(found, lambda name: found[name], 40, columns=4096, seed=2)
    assert rows.shape == (40, 4096)
    assert cosine_error(_cosines(rows), raw @ raw.T) < 1.5 / 4096**0.5
    last = sketch_raw(found, lambda name: found[name][30:], 10, columns=4096, seed=2)
    torch.testing.assert_close(last, rows[30:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("repeated", [False, True], ids=["a basis", "vectors that depend on each other"])
def test_the_nearest_combination_is_the_projection_at_the_cosine_told(repeated: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    basis = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    if repeated:
        basis[3] = basis[0] - 2 * basis[1]
    targets = torch.randn(3, 30, generator=generator, dtype=torch.float64)
    targets[2] = basis[0] + 0.5 * basis[2]
    targets /= targets.norm(dim=1, keepdim=True)
    weights, cosines = nearest_combinations(basis @ basis.T, targets @ basis.T)
    made = weights @ basis
    torch.testing.assert_close(made.norm(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close((made * targets).sum(1), cosines)
    projected = torch.linalg.lstsq(basis[:3].T, targets.T).solution.T @ basis[:3]
    if not repeated:
        projected = torch.linalg.lstsq(basis.T, targets.T).solution.T @ basis
    torch.testing.assert_close(projected.norm(dim=1), cosines)
    assert cosines[2] == pytest.approx(1)
    assert 0 < cosines[0] < 0.8


def test_what_has_nothing_in_common_with_a_basis_has_no_combination() -> None:
    weights, cosines = nearest_combinations(torch.eye(2), torch.zeros(1, 2))
    assert (weights.tolist(), cosines.tolist()) == ([[0, 0]], [0])
    weights, cosines = nearest_combinations(torch.zeros(0, 0), torch.zeros(1, 0))
    assert (tuple(weights.shape), cosines.tolist()) == ((1, 0), [0])


@pytest.mark.parametrize(("power", "exponent"), [("+1/2", 0.5), ("0", 0.0), ("-1/2", -0.5)])
def test_a_vector_of_document_weights_is_the_sum_taken_back(power: str, exponent: float) -> None:
    found = gradients(13)
    curvature = curvature_of(found)
    weights = torch.randn(2, 13, generator=torch.Generator().manual_seed(4))
    load = in_shards(found, SIZES)
    for module in curvature:
        parts = combined(weights, module, load, SIZES, power)  # type: ignore[arg-type]
        q_s, q_a = module.rotation.outputs.vectors.double(), module.rotation.inputs.vectors.double()
        scale = module.lambdas + module.damping
        rotated = q_s.T @ found[module.name].double() @ q_a
        core = torch.einsum("kn,nij->kij", weights.double(), rotated / scale.sqrt()) * scale**exponent
        expected = -(q_s @ core @ q_a.T)
        np.testing.assert_allclose(parts.numpy(), expected.numpy(), atol=2e-4)
