"""The dictionary stage on the sets that have little in them, and what it says of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from atomscope.bundle import Coefficients, layout, read_coefficients
from atomscope.types.spec import AuditConfig
from atomscope_workers.pipeline.alternating import learn
from atomscope_workers.stages.dictionary import FACTS
from atomscope_workers.stages.warned import earlier
from tests.workers.stages.units import (
    PARAMETERS,
    SHAPES,
    Audit,
    clustered_gradients,
    extracted,
    random_gradients,
)

CONFIG = AuditConfig(
    shard_documents=5, components=50, n_atoms=4, alpha=0.1, min_active=2, fits=2, surrogates=1
)
COMPONENTS = msgspec.structs.replace(CONFIG, preconditioner="ekfac", solver="sklearn", codes="signed")
"""The paper's way: rows of kept components, scikit-learn's solver."""


@pytest.fixture(params=[CONFIG, COMPONENTS], ids=["gram", "components"])
def config(request: pytest.FixtureRequest) -> AuditConfig:
    return request.param


def _learned(
    work: Path, gradients: dict[str, NDArray[np.float32]], config: AuditConfig = CONFIG
) -> tuple[Audit, list[str]]:
    """The audit after its dictionary, and the stage's warnings."""
    audit = extracted(work, gradients, config)
    return audit, audit.through("dictionary").summary["warnings"]


def _atoms(audit: Audit) -> dict[str, NDArray[np.float32]]:
    return load_file(audit.file(layout.DICTIONARY))


def _codes(audit: Audit) -> Coefficients:
    return read_coefficients(audit.file(layout.COEFFICIENTS))


def test_codes_carry_physical_rows_and_clusters_have_atoms_of_their_own(
    tmp_path: Path, config: AuditConfig
) -> None:
    clusters = [0, 1, 2, 3] * 3
    audit, warnings = _learned(tmp_path / "work", clustered_gradients(clusters), config)
    codes = _codes(audit)
    assert warnings == []
    assert set(codes.document.tolist()) == set(range(0, 36, 3))
    dense = np.zeros((36, 4))
    dense[codes.document, codes.atom] = codes.value
    strongest = dense[::3].argmax(1)
    assert len({(cluster, int(atom)) for cluster, atom in zip(clusters, strongest, strict=True)}) == 4
    assert (dense.sum(0) >= 0).all()  # signs are turned so
    assert set(_atoms(audit)["signs"].tolist()) <= {-1, 1}


def test_strengths_are_kept_beside_the_codes_and_add_up_to_the_same(tmp_path: Path) -> None:
    """Two clusters of twenty, coded so sparsely that a document may go without a code."""
    config = msgspec.structs.replace(CONFIG, n_atoms=2, alpha=0.6)
    audit, _ = _learned(tmp_path / "work", clustered_gradients([0, 1] * 20, noise=1.0), config)
    stored = _codes(audit)
    assert (stored.code == 0).any()
    assert (stored.value > 0).all()
    for atom in np.unique(stored.atom):
        of_atom = stored.atom == atom
        assert stored.value[of_atom].sum() == pytest.approx(stored.code[of_atom].sum(), rel=1e-6)


def test_signed_codes_are_the_strengths(tmp_path: Path) -> None:
    audit, _ = _learned(tmp_path / "work", clustered_gradients([0, 1] * 12), COMPONENTS)
    stored = _codes(audit)
    np.testing.assert_array_equal(stored.value, stored.code)


@pytest.mark.parametrize(("count", "asked"), [(3, 40), (12, 1000), (2, 2)])
def test_there_are_never_more_atoms_than_documents(tmp_path: Path, count: int, asked: int) -> None:
    gram = msgspec.structs.replace(CONFIG, n_atoms=asked)
    audit, _ = _learned(tmp_path / "gram", random_gradients(count), gram)
    assert _atoms(audit)["weights"].shape == (count, count)
    assert np.isfinite(_atoms(audit)["weights"]).all()
    components = msgspec.structs.replace(COMPONENTS, n_atoms=asked)
    audit, _ = _learned(tmp_path / "components", random_gradients(count), components)
    assert _atoms(audit)["atoms"].shape == (count, PARAMETERS)
    assert np.isfinite(_atoms(audit)["atoms"]).all()


def test_more_atoms_than_components_are_learned_without_complaint(tmp_path: Path) -> None:
    """One component a module: ten atoms of two coordinates."""
    config = msgspec.structs.replace(COMPONENTS, n_atoms=10, components=1)
    audit, warnings = _learned(tmp_path / "work", random_gradients(12), config)
    atoms, codes = _atoms(audit)["atoms"], _codes(audit)
    assert warnings == []
    assert atoms.shape == (10, 2)
    used = np.unique(codes.atom)
    assert np.linalg.norm(atoms[used], axis=1) == pytest.approx(1.0, abs=1e-5)


def test_a_penalty_that_leaves_no_code_is_told_with_its_remedy(tmp_path: Path, config: AuditConfig) -> None:
    audit, warnings = _learned(
        tmp_path / "work", random_gradients(12), msgspec.structs.replace(config, alpha=1.0)
    )
    assert warnings == ["every code is zero at alpha 1: no atom was found; try a smaller alpha"]
    assert len(_codes(audit)) == 0
    assert msgspec.json.decode(audit.file(FACTS).read_bytes())["codes_per_document"] == 0


def test_a_fit_that_did_not_converge_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atomscope_workers.pipeline.dictionary.learn", partial(learn, outer=2))
    audit, (warning,) = _learned(tmp_path / "work", random_gradients(20))
    facts = msgspec.json.decode(audit.file(FACTS).read_bytes())
    assert (facts["converged"], facts["rounds"], facts["tolerance"]) == (False, 2, 1e-4)
    assert facts["last_fall"] > 1e-4
    assert "had not converged when it was stopped after 2 rounds" in warning
    assert f"{-facts['last_fall']:+.3%}" in warning
    assert earlier(audit.context("report")) == [warning]


def test_copies_of_one_document_are_one_atom_of_equal_codes(tmp_path: Path, config: AuditConfig) -> None:
    audit, _ = _learned(tmp_path / "work", clustered_gradients([0] * 12, noise=0.0), config)
    codes = _codes(audit)
    assert len(np.unique(codes.atom)) == 1
    assert codes.document.tolist() == list(range(0, 36, 3))
    assert codes.value == pytest.approx(
        1 - CONFIG.alpha, abs=1e-5
    )  # what the penalty leaves of a cosine of 1


def test_a_document_without_gradient_takes_no_part_and_is_counted(
    tmp_path: Path, config: AuditConfig
) -> None:
    gradients = random_gradients(12)
    for value in gradients.values():
        value[[3, 7]] = 0
    audit, warnings = _learned(tmp_path / "work", gradients, config)
    assert warnings == ["2 documents had no gradient and took no part"]
    assert not {9, 21} & set(_codes(audit).document.tolist())


def test_no_gradient_at_all_gives_no_atom_and_blames_no_setting(tmp_path: Path) -> None:
    nothing = {name: np.zeros((6, *shape), dtype=np.float32) for name, shape in SHAPES.items()}
    audit, warnings = _learned(tmp_path / "gram", nothing)
    assert warnings == ["6 documents had no gradient and took no part"]
    assert _atoms(audit)["weights"].shape == (0, 6)
    audit, warnings = _learned(tmp_path / "components", nothing, COMPONENTS)
    assert warnings == ["6 documents had no gradient and took no part"]
    assert _atoms(audit)["atoms"].shape == (0, 0)
    assert len(_codes(audit)) == 0


def test_one_seed_gives_one_file_and_another_seed_another(tmp_path: Path, config: AuditConfig) -> None:
    gradients = random_gradients(20)
    files = [
        _learned(tmp_path / str(place), gradients, msgspec.structs.replace(config, seed=seed))[0]
        .file(layout.DICTIONARY)
        .read_bytes()
        for place, seed in enumerate((1, 1, 2))
    ]
    assert files[0] == files[1] != files[2]
