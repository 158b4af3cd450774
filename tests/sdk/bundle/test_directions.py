"""Directions of atoms and behaviours; other powers are proved on real curvature in the stages' tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

import atomscope
from atomscope.bundle import Bundle, encode_json, layout, write_manifest
from atomscope.steering import BaseModel, Target
from atomscope.store import LocalStore
from tests.sdk.bundle.golden_bundle import ADAPTER, AUDIT_ID, BEHAVIOURS, GOLDEN, SPEC, entries, vector


def changed(tmp_path: Path, path: str, value: object) -> Bundle:
    """The golden bundle with another file at `path`."""
    folder = shutil.copytree(GOLDEN, tmp_path / "bundle")
    (folder / path).write_bytes(value if isinstance(value, bytes) else encode_json(value))
    (folder / layout.MANIFEST).unlink()
    write_manifest(LocalStore(folder), "", AUDIT_ID, entries(folder))
    return atomscope.open(folder)


def test_an_atoms_direction_is_its_vector() -> None:
    bundle = atomscope.open(GOLDEN)
    found = bundle.direction(Target("atom", 1))
    assert all((found[name] == tensor).all() for name, tensor in bundle.vector(1).items())


def test_a_behaviours_direction_is_the_mean_of_what_its_atoms_explain_of_its_documents() -> None:
    """Document 0 has 0.75 on atom 1, document 2 has 0.5 on atom 0; document 3 is not the behaviour's."""
    found = atomscope.open(GOLDEN).direction(Target("behaviour", 0))
    assert found.keys() == ADAPTER.keys()
    for name, tensor in found.items():
        assert tensor.dtype == np.float32
        assert np.allclose(tensor, 0.75 / 2 * vector(1)[name] + 0.5 / 2 * vector(0)[name])


def test_provenance_names_the_base_and_the_audits_power() -> None:
    told = atomscope.open(GOLDEN).steer({"behaviour:0": 0.5, 1: 0.1}).provenance
    base = SPEC.base_model
    assert told.base_model == BaseModel(id=base.id, name=base.name, sha256=base.sha256)
    assert (told.power, told.strengths) == (SPEC.config.vector_power, {"1": 0.1, "behaviour:0": 0.5})


@pytest.mark.parametrize("target", [Target("atom", 2), Target("behaviour", 1)])
def test_what_the_audit_does_not_have_is_refused_by_name(target: Target) -> None:
    with pytest.raises(atomscope.SteeringError, match=f"no {target}"):
        atomscope.open(GOLDEN).direction(target)


def test_a_behaviour_of_which_no_document_is_active_has_no_direction(tmp_path: Path) -> None:
    idle = [msgspec.structs.replace(BEHAVIOURS[0], documents=[])]
    with pytest.raises(atomscope.SteeringError, match="behaviour 0 has no direction"):
        changed(tmp_path, layout.BEHAVIOURS, idle).direction(Target("behaviour", 0))


def test_another_power_needs_the_curvature() -> None:
    bundle = atomscope.open(GOLDEN)
    with pytest.raises(atomscope.BundleError, match=r"does not hold curvature/curvature\.safetensors"):
        bundle.direction(Target("atom", 1), "0")
    assert bundle.direction(Target("atom", 1), SPEC.config.vector_power).keys() == ADAPTER.keys()


def test_a_damaged_config_of_the_base_is_told(tmp_path: Path) -> None:
    with pytest.raises(atomscope.BundleError, match=r"base/config\.json is damaged"):
        changed(tmp_path, layout.BASE_CONFIG, b"[1]").steer({1: 0.1}, format="gguf")
