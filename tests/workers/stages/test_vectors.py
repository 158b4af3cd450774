"""The stored steering vectors: one an atom, named as the adapter, lowering the loss of its documents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from atomscope.bundle import BehaviourAttributes, BehaviourList, directions, layout, read_coefficients
from atomscope.steering import Target
from atomscope.types.atoms import Behaviour
from atomscope.types.spec import VectorPower
from atomscope_workers.local_context import LocalContext
from atomscope_workers.stages import vectors
from tests.workers.stages.units import (
    CONFIG,
    SHAPES,
    Audit,
    clustered_gradients,
    extracted,
    random_gradients,
    unit,
)

SPACES: dict[str, dict[str, Any]] = {
    "gram": {},
    "directions": {"exact_documents": 1, "sketch_columns": 256, "directions": 6},
    "components": {"preconditioner": "ekfac", "solver": "sklearn", "codes": "signed"},
}


@pytest.fixture(scope="module", params=SPACES)
def learned(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Audit:
    """An audit up to its evidence."""
    work = tmp_path_factory.mktemp("vectors") / "work"
    config = msgspec.structs.replace(CONFIG, **SPACES[request.param])
    audit = extracted(work, clustered_gradients([0, 1, 2, 3] * 4), config)
    audit.through("evidence")
    return audit


def _with_vectors(learned: Audit, power: VectorPower) -> Audit:
    config = msgspec.structs.replace(learned.spec.config, vector_power=power)
    audit = replace(learned, spec=msgspec.structs.replace(learned.spec, config=config))
    audit.run("combine", "vectors", "characterise")
    return audit


@pytest.mark.parametrize("power", ["+1/2", "0", "-1/2"])
def test_there_is_one_vector_an_atom_of_the_norm_that_the_atom_states(
    learned: Audit, power: VectorPower
) -> None:
    audit = _with_vectors(learned, power)
    stored = sorted(path.name for path in audit.file("vectors").iterdir())
    assert stored == sorted(f"{atom.index:04d}.safetensors" for atom in audit.atoms())
    for atom in audit.atoms():
        vector = load_file(audit.file(layout.vector(atom.index)))
        assert {name: value.shape for name, value in vector.items()} == SHAPES
        assert {value.dtype for value in vector.values()} == {np.dtype(np.float32)}
        norm = np.sqrt(sum(float(np.square(value, dtype=np.float64).sum()) for value in vector.values()))
        assert norm == pytest.approx(atom.vector_norm, rel=1e-5)  # float32


def test_a_vector_points_down_the_loss_of_its_documents(learned: Audit) -> None:
    """Its product with the gradient of every one of them is negative."""
    audit = _with_vectors(learned, "0")
    gradients = clustered_gradients([0, 1, 2, 3] * 4)
    for atom in audit.atoms():
        vector = load_file(audit.file(layout.vector(atom.index)))
        for item in atom.top_documents:
            slope = sum(float((vector[name] * gradients[name][item.document // 3]).sum()) for name in SHAPES)
            assert slope < 0


def test_a_vector_says_what_it_is_of(learned: Audit) -> None:
    audit = _with_vectors(learned, "0")
    atom = audit.atoms()[-1]
    with safe_open(audit.file(layout.vector(atom.index)), "np") as file:
        facts = msgspec.json.decode(file.metadata()["atomscope"])
    assert facts["atom"] == atom.index
    assert facts["power"] == "0"
    assert facts["adapter"] == audit.spec.adapter.sha256
    assert "raises" in facts["direction"]


def test_without_an_atom_no_vector_is_written_and_the_count_still_ends_whole(tmp_path: Path) -> None:
    audit = extracted(tmp_path / "work", random_gradients(12), msgspec.structs.replace(CONFIG, alpha=1.0))
    audit.through("evidence")
    counts: list[tuple[int, int]] = []

    def tell(done: int, total: int, unit: str) -> None:
        counts.append((done, total))

    vectors.run(unit(audit.work, "vectors", audit.spec, shards=audit.shards, tell=tell))
    assert not audit.file("vectors").exists()
    assert counts[-1] == (5, 5)


def test_units_share_the_atoms_and_make_what_one_unit_makes(
    learned: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One or all at once, in any order of the units."""
    whole = _with_vectors(learned, "0")
    atoms = sorted(atom.index for atom in whole.atoms())
    expected = {atom: load_file(whole.file(layout.vector(atom))) for atom in atoms}
    for shards, held in ((1, 2**30), (3, 1), (9, 1)):
        work = Path(copytree(whole.work, tmp_path / f"work{shards}"))
        audit = replace(whole, work=work, shards=shards)
        monkeypatch.setattr(vectors, "HELD_BYTES", held)
        monkeypatch.setattr(vectors, "LEAST_ATOMS", 1)
        rmtree(audit.file("vectors"))
        rmtree(audit.file(vectors.MADE))
        units, everywhere = min(shards, len(atoms)), set[str]()
        for index in reversed(range(shards)):
            ctx = audit.context("vectors", index)
            _repeat_shard_plan(ctx)
            vectors.run(ctx)
            made = [path for path in ctx.written if path.startswith("vectors/")]
            least = len(atoms) // units if index < units else 0
            assert least <= len(made) <= least + (len(atoms) % units > 0)
            everywhere |= set(made)
        assert everywhere == set(map(layout.vector, atoms))
        told = vectors.read_made(audit.context("characterise"))
        assert told.norms.keys() == set(atoms)
        for atom, vector in expected.items():
            found = load_file(audit.file(layout.vector(atom)))
            for name, tensor in vector.items():
                np.testing.assert_array_equal(found[name], tensor)


def _repeat_shard_plan(ctx: LocalContext) -> None:
    """A unit of an audit of more shards than there are needs a plan of its own: the first shard's."""
    if ctx.index:
        ctx.write_bytes(layout.shard_plan(ctx.index), ctx.read(layout.shard_plan(0)).read_bytes())


class _AsBundle:
    """The files of an audit in the making, as `directions` reads them from a bundle."""

    def __init__(self, audit: Audit) -> None:
        self.spec = audit.spec
        self.atoms = audit.atoms()
        found = msgspec.json.decode(audit.file(layout.BEHAVIOURS).read_bytes(), type=list[Behaviour])
        self.behaviours = BehaviourList([BehaviourAttributes(item) for item in found])
        self.coefficients = read_coefficients(audit.file(layout.COEFFICIENTS))
        self._audit = audit

    def vector(self, atom: int) -> dict[str, Any]:
        return load_file(self.file(layout.vector(atom)))

    def file(self, path: str) -> Path:
        return self._audit.file(path)


@pytest.mark.parametrize(
    ("stored", "wanted"), [("0", "+1/2"), ("0", "-1/2"), ("+1/2", "-1/2"), ("-1/2", "0")]
)
def test_a_stored_vector_is_taken_to_another_power_by_the_curvature(
    learned: Audit, stored: VectorPower, wanted: VectorPower
) -> None:
    there = _AsBundle(_with_vectors(learned, wanted))
    expected = {atom.index: there.vector(atom.index) for atom in there.atoms}
    bundle: Any = _AsBundle(_with_vectors(learned, stored))
    targets = [Target("atom", index) for index in expected]
    for target, found in directions(bundle, targets, wanted).items():
        own = expected[target.index]
        size = np.sqrt(sum(np.square(own[name], dtype=np.float64).sum() for name in SHAPES))
        assert found.keys() == own.keys()
        for name, tensor in found.items():
            assert tensor.dtype == np.float32
            assert np.abs(tensor - own[name]).max() < 1e-4 * size


def test_a_behaviours_direction_points_down_the_loss_of_its_documents(learned: Audit) -> None:
    """Of them all together, and of each that is stronger on it than on any other."""
    bundle: Any = _AsBundle(_with_vectors(learned, "0"))
    gradients = clustered_gradients([0, 1, 2, 3] * 4)
    assert len(bundle.behaviours) > 1
    for behaviour in bundle.behaviours:
        found = directions(bundle, [Target("behaviour", behaviour.index)])
        vector = found[Target("behaviour", behaviour.index)]
        documents = [member.document for member in behaviour.behaviour.documents]
        slopes = {
            row: sum(float((vector[name] * gradients[name][row // 3]).sum()) for name in SHAPES)
            for row in documents
        }
        assert sum(slopes.values()) < 0
        assert slopes[documents[0]] < 0
