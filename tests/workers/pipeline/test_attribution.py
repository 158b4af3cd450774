"""A query in the whitened space, against the same by brute force in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from atomscope.bundle import Coefficients
from atomscope.types.spec import Codes, Preconditioner, VectorPower
from atomscope_workers.pipeline.attribution import code_cosines, code_query, explained, whiten_query
from atomscope_workers.pipeline.curvature import Eigenbasis, ModuleCurvature, Rotation, choose_components
from atomscope_workers.pipeline.lasso import FINAL, fista
from atomscope_workers.pipeline.projection import columns
from atomscope_workers.pipeline.vectors import EXPONENTS, steering_vector

SHAPES = {"a": (3, 5), "b": (4, 2), "silent": (2, 2)}
POWERS: tuple[VectorPower, ...] = ("+1/2", "0", "-1/2")


def _basis(size: int, generator: torch.Generator) -> Eigenbasis:
    square = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return Eigenbasis(torch.arange(size, 0, -1).double(), torch.linalg.qr(square)[0].float())


def _curvature(preconditioner: Preconditioner, components: int = 4) -> list[ModuleCurvature]:
    """Random rotations and lambdas; the module `silent` has no energy."""
    generator = torch.Generator().manual_seed(0)
    found: list[ModuleCurvature] = []
    for name, (rows, cols) in SHAPES.items():
        rotation = Rotation(name, name, _basis(cols, generator), _basis(rows, generator))
        lambdas = torch.rand(rows, cols, generator=generator, dtype=torch.float64) ** 3
        found.append(
            choose_components(
                rotation,
                lambdas * (name != "silent"),
                preconditioner=preconditioner,
                components=components,
                damping=0.01,
            )
        )
    return found


def _gradients(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def _whitened(
    gradients: dict[str, torch.Tensor], curvature: Sequence[ModuleCurvature]
) -> NDArray[np.float64]:
    """Kept whitened coordinates, one after the other, by loops over coordinates."""
    found: list[float] = []
    for module in curvature:
        if not module.has_energy:
            continue
        q_s, q_a = module.rotation.outputs.vectors.double(), module.rotation.inputs.vectors.double()
        rotated = q_s.T @ gradients[module.name].double() @ q_a
        kept = module.chosen.tolist() or [
            [i, j] for i in range(len(rotated)) for j in range(rotated.shape[1])
        ]
        found += [
            float(rotated[i, j] / (module.lambdas[i, j] + module.damping).sqrt()) for i, j in sorted(kept)
        ]
    return np.array(found)


@pytest.mark.parametrize("preconditioner", ["ekfac-full", "ekfac", "kfac"])
def test_a_probe_gives_the_products_of_whitened_gradients(preconditioner: Preconditioner) -> None:
    curvature = _curvature(preconditioner)
    query = whiten_query(_gradients(1), curvature)
    expected = _whitened(_gradients(1), curvature)
    assert query.norm == pytest.approx(np.linalg.norm(expected), rel=1e-5)
    probe = query.probe(-0.5)
    for seed in range(2, 6):
        other = _gradients(seed)
        found = sum(float((probe[name].double() * other[name]).sum()) for name in probe)
        product = expected @ _whitened(other, curvature) / np.linalg.norm(expected)
        assert found == pytest.approx(product, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("preconditioner", ["ekfac", "kfac"])
def test_a_probe_takes_a_steering_vector_of_any_power_back_to_its_atom(
    preconditioner: Preconditioner, power: VectorPower
) -> None:
    curvature = _curvature(preconditioner)
    width = max(place.stop for place in columns(curvature).values())
    atom = np.random.default_rng(0).normal(size=width)
    query = whiten_query(_gradients(1), curvature)
    coordinates = np.concatenate(
        [query.parts[module.name][module.chosen[:, 0], module.chosen[:, 1]].numpy() for module in curvature]
    )
    vector = steering_vector(atom, curvature, power)
    probe = query.probe(-EXPONENTS[power])
    found = -sum(float((vector[name].astype(np.float64) * probe[name].numpy()).sum()) for name in vector)
    assert np.linalg.norm(coordinates) == pytest.approx(1)
    assert found == pytest.approx(coordinates @ atom, rel=1e-4, abs=1e-5)


def test_a_query_without_a_gradient_where_documents_have_one_has_norm_zero() -> None:
    gradients = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    gradients["silent"] = torch.ones(SHAPES["silent"])
    query = whiten_query(gradients, _curvature("ekfac-full"))
    assert query.norm == 0
    assert all(float(part.abs().sum()) == 0 for part in query.probe(-0.5).values())


def test_a_module_without_its_gradient_is_an_error() -> None:
    gradients = _gradients(1)
    del gradients["b"]
    with pytest.raises(KeyError):
        whiten_query(gradients, _curvature("ekfac-full"))


# ---------------------------------------------------------------------- codes


def _atoms(count: int, width: int = 12) -> NDArray[np.float64]:
    rows = np.random.default_rng(1).normal(size=(count, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _objective(code: NDArray[np.float64], x: NDArray[np.float64], atoms: NDArray[np.float64]) -> float:
    return float(0.5 * np.square(x - code @ atoms).sum() + 0.1 * np.abs(code).sum())


@pytest.mark.parametrize("codes", ["nonnegative", "signed"])
def test_a_query_is_coded_as_a_document_is(codes: Codes) -> None:
    atoms, x = _atoms(6), _atoms(7)[6]
    code = code_query(atoms @ x, atoms @ atoms.T, 0.1, codes)
    expected = fista(
        torch.from_numpy(atoms @ x)[None],
        torch.from_numpy(atoms @ atoms.T),
        torch.zeros(1, 6, dtype=torch.float64),
        0.1,
        codes,
        FINAL,
        tolerance=1e-8,
    )
    np.testing.assert_array_equal(code, expected[0].numpy())
    assert (code >= 0).all() or codes == "signed"
    # It is a minimum: no small step along any atom does better.
    for step in (1e-4, -1e-4):
        for place in range(6):
            moved = code + step * np.eye(6)[place]
            if codes == "signed" or moved.min() >= 0:
                assert _objective(moved, x, atoms) >= _objective(code, x, atoms) - 1e-12


def test_two_opposed_atoms_are_coded_as_any_others() -> None:
    """What they share is at right angles to a constant vector, and it is the largest direction."""
    atoms = np.array([[1.0, 0.0], [-0.9, np.sqrt(1 - 0.81)]])
    x = np.array([0.6, 0.8])
    code = code_query(atoms @ x, atoms @ atoms.T, 0.01, "signed")
    assert np.isfinite(code).all()
    np.testing.assert_allclose(code @ atoms, x, atol=0.1)


def test_without_atoms_there_is_no_code() -> None:
    code = code_query(np.zeros(0), np.zeros((0, 0)), 0.1, "nonnegative")
    assert code.shape == (0,)
    assert explained(code, np.zeros(0), np.zeros((0, 0))) == 0.0


def test_what_is_explained_is_the_share_that_the_code_rebuilds() -> None:
    atoms, x = _atoms(6), _atoms(7)[6]
    inner = atoms @ atoms.T
    code = code_query(atoms @ x, inner, 0.05, "signed")
    expected = 1 - np.square(x - code @ atoms).sum()
    assert 0 < expected < 1
    assert explained(code, atoms @ x, inner) == pytest.approx(expected)
    assert explained(np.array([1.0]), np.array([1.0]), np.eye(1)) == 1.0
    assert explained(np.array([9.0]), np.array([1.0]), np.eye(1)) == 0.0


def test_cosines_of_codes_are_those_of_what_the_codes_rebuild(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atomscope_workers.pipeline.attribution._ROWS", 4)  # several blocks
    atoms, random = _atoms(5), np.random.default_rng(2)
    dense = np.where(random.random((11, 5)) < 0.5, random.normal(size=(11, 5)), 0.0)
    dense[[3, 8]] = 0.0
    rows, places = np.nonzero(dense)
    stored = Coefficients(rows.astype(np.int64), places.astype(np.int32), dense[rows, places])
    code = random.normal(size=5)
    found = code_cosines(code, stored, atoms @ atoms.T, 11)
    for row in range(11):
        rebuilt, query = dense[row] @ atoms, code @ atoms
        length = np.linalg.norm(rebuilt) * np.linalg.norm(query)
        assert found[row] == pytest.approx(rebuilt @ query / length if length else 0.0, abs=1e-9)
    assert found[3] == found[8] == 0.0
    assert code_cosines(np.zeros(5), stored, atoms @ atoms.T, 11).tolist() == [0.0] * 11
