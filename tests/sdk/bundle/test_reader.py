"""What a bundle answers: documents of an atom by strength, vectors and shards by name, old settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import atomscope
from atomscope.bundle import Bundle, Coefficients, layout, write_coefficients
from atomscope.errors import SteeringError
from atomscope.result_folder import BUNDLE_FILES
from atomscope.steering.tensors import write_tensors
from atomscope.store import LocalStore
from tests.sdk.bundle import golden_bundle as made
from tests.sdk.bundle.golden_bundle import GOLDEN


def relist(folder: Path) -> Bundle:
    """Commit the folder again as it is now."""
    manifest = json.loads((folder / layout.MANIFEST).read_bytes())
    for entry in manifest["files"]:
        content = (folder / entry["path"]).read_bytes()
        entry |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / layout.MANIFEST).write_text(json.dumps(manifest))
    return atomscope.open(folder)


def with_codes(folder: Path, *codes: tuple[int, int, float]) -> Bundle:
    rows, atoms, values = zip(*codes, strict=True)
    found = Coefficients(np.array(rows, np.int64), np.array(atoms, np.int32), np.array(values))
    write_coefficients(found, folder / layout.COEFFICIENTS)
    return relist(folder)


def test_documents_of_an_atom_come_strongest_first_by_sign(copied: Path) -> None:
    bundle = with_codes(
        copied, (0, 1, 0.5), (2, 1, 0.75), (3, 1, -0.25), (0, 0, -0.5), (2, 0, -0.75), (3, 0, 0.25)
    )
    found = {
        (atom.index, sign): [(match.document, match.value) for match in atom.documents(sign)]
        for atom in bundle.atoms
        for sign in ("positive", "negative")
    }
    assert found == {
        (1, "positive"): [(2, 0.75), (0, 0.5)],
        (1, "negative"): [(3, -0.25)],
        (0, "positive"): [(3, 0.25)],
        (0, "negative"): [(2, -0.75), (0, -0.5)],
    }
    assert [match.document for match in bundle.matches(0, "negative", limit=1)] == [2]
    assert bundle.matches(0, limit=0) == []


def test_a_sign_that_there_is_not_is_answered_with_the_two() -> None:
    with pytest.raises(atomscope.UsageError, match="sign='x': one of positive, negative is expected"):
        atomscope.open(GOLDEN).atoms[0].documents(sign=cast("Any", "x"))


def test_equal_strengths_come_by_rising_row(copied: Path) -> None:
    bundle = with_codes(copied, (3, 1, 0.5), (2, 1, 0.5), (0, 1, 0.5))
    assert [match.document for match in bundle.matches(1)] == [0, 2, 3]


def test_a_code_within_rounding_of_zero_is_not_active(copied: Path) -> None:
    bundle = with_codes(copied, (0, 1, 1e-6), (2, 1, 1.1e-6), (3, 1, -1e-9))
    assert [match.document for match in bundle.matches(1)] == [2]
    assert bundle.matches(1, "negative") == []


def test_a_match_carries_the_record_of_its_document() -> None:
    (match,) = atomscope.open(GOLDEN).matches(1)
    record = made.DOCUMENTS[0]
    assert (match.document, match.value, match.id) == (0, 0.75, "row-0")
    assert (match.messages, match.n_tokens, match.loss) == (record.messages, record.n_tokens, record.loss)


def test_matches_are_the_same_whether_or_not_all_documents_were_read() -> None:
    fresh, warm = atomscope.open(GOLDEN), atomscope.open(GOLDEN)
    assert len(warm.documents) == 3
    for atom in (0, 1, 99):
        for sign in ("positive", "negative"):
            assert fresh.matches(atom, sign) == warm.matches(atom, sign)


def test_a_code_of_a_document_that_is_not_listed_is_damage(copied: Path) -> None:
    bundle = with_codes(copied, (1, 1, 0.5))
    with pytest.raises(atomscope.BundleError, match=r"coefficients\.parquet names document 1"):
        bundle.matches(1)


def test_settings_of_another_version_are_left_out(copied: Path) -> None:
    spec = json.loads((copied / layout.SPEC).read_bytes())
    spec["config"] |= {"solver_of_the_future": "x"}
    spec["note"] = 1
    (copied / layout.SPEC).write_text(json.dumps(spec))
    bundle = relist(copied)
    assert bundle.spec == atomscope.open(GOLDEN).spec
    del spec["config"]["seed"]
    (copied / layout.SPEC).write_text(json.dumps(spec))
    assert relist(copied).spec.config.seed == 0


def test_a_bundle_of_before_the_tree_was_kept_says_so(copied: Path) -> None:
    (copied / layout.HIERARCHY).unlink()
    manifest = json.loads((copied / layout.MANIFEST).read_bytes())
    manifest["files"] = [entry for entry in manifest["files"] if entry["path"] != layout.HIERARCHY]
    (copied / layout.MANIFEST).write_text(json.dumps(manifest))
    bundle = relist(copied)
    with pytest.raises(atomscope.BundleError, match=r"no atoms/hierarchy\.json: it was made before"):
        _ = bundle.hierarchy
    assert len(bundle.behaviours) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_coherence_that_is_not_finite_filters_nothing_quietly(value: float) -> None:
    with pytest.raises(ValueError, match="min_coherence must be a finite number"):
        atomscope.open(GOLDEN).atoms.filter(min_coherence=value)


def test_a_tree_that_is_none_is_damage(copied: Path) -> None:
    tree = json.loads((copied / layout.HIERARCHY).read_bytes())
    (copied / layout.HIERARCHY).write_text(json.dumps(tree | {"atoms": [1, 1]}))
    with pytest.raises(atomscope.BundleError, match=r"hierarchy\.json is damaged: an atom is listed twice"):
        _ = relist(copied).hierarchy


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_gradients_of_sixteen_bits_are_read_as_float32(copied: Path, kind: str) -> None:
    path = copied / layout.gradient_shard(0)
    tensors = load_file(path)
    wanted = {name: value.astype(np.float32) for name, value in tensors.items() if name != "document"}
    stored: dict[str, NDArray[Any]] = {"document": tensors["document"]}
    for name, value in wanted.items():
        if kind == "bfloat16":
            stored[name] = value.astype(ml_dtypes.bfloat16)
        else:
            stored[name] = (value / 4).astype(np.float16)
            stored[f"scale/{name}"] = np.full(len(value), 4, np.float32)
    write_tensors(stored, path)
    found = next(relist(copied).gradients())
    assert found.keys() == {"document", *wanted}
    for name, value in wanted.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], value, rtol=2**-8)


def test_float16_without_its_scale_is_damage(copied: Path) -> None:
    path = copied / layout.gradient_shard(0)
    tensors = load_file(path)
    half = {name: value.astype(np.float16) for name, value in tensors.items() if name != "document"}
    write_tensors({"document": tensors["document"], **half}, path)
    with pytest.raises(atomscope.BundleError, match="does not hold a scale for each row"):
        next(relist(copied).gradients())


def _shuffled(folder: Path) -> None:
    tensors = load_file(folder / layout.gradient_shard(0))
    save_file({**tensors, "document": tensors["document"][::-1].copy()}, folder / layout.gradient_shard(0))


def _without_rows(folder: Path) -> None:
    tensors = load_file(folder / layout.gradient_shard(0))
    del tensors["document"]
    save_file(tensors, folder / layout.gradient_shard(0))


def _short(folder: Path) -> None:
    tensors = load_file(folder / layout.gradient_shard(0))
    tensors["q_proj.lora_A.weight"] = tensors["q_proj.lora_A.weight"][:1]
    save_file(tensors, folder / layout.gradient_shard(0))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_shuffled, "the documents of the plan"),
        (_without_rows, "the documents of the plan"),
        (_short, "one row a document"),
    ],
)
def test_a_shard_holds_the_rows_of_the_plan_or_is_refused(
    copied: Path, damage: Callable[[Path], None], told: str
) -> None:
    damage(copied)
    with pytest.raises(atomscope.BundleError, match=rf"gradients/0000\.safetensors does not hold {told}"):
        next(relist(copied).gradients())


def test_a_vector_of_another_dtype_is_refused(copied: Path) -> None:
    path = copied / layout.vector(1)
    save_file({name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in load_file(path).items()}, path)
    with pytest.raises(atomscope.BundleError, match=r"vectors/0001\.safetensors does not hold float32"):
        relist(copied).vector(1)


def test_arrays_are_read_only_views() -> None:
    bundle = atomscope.open(GOLDEN)
    for tensor in (*bundle.vector(0).values(), *next(bundle.gradients()).values()):
        with pytest.raises(ValueError, match="read-only"):
            tensor[...] = 0


def test_steering_moves_the_adapter_along_the_vectors_named(tmp_path: Path) -> None:
    bundle = atomscope.open(GOLDEN)
    adapter = {name: tensor.astype(np.float64) for name, tensor in made.ADAPTER.items()}
    norm = np.sqrt(sum(float(np.square(tensor).sum()) for tensor in adapter.values()))
    steered = bundle.steer({bundle.atoms.get(1): 0.5}).save(tmp_path / "steered")
    moved = load_file(steered / "adapter_model.safetensors")
    name = "q_proj.lora_A.weight"
    step = 0.5 * norm / np.sqrt(sum(tensor.size for tensor in adapter.values()))
    np.testing.assert_allclose(moved[f"base_model.model.{name}"] - adapter[name], step, rtol=1e-6)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"format": "pt"}, "one of adapter, delta, vector, gguf, gguf-delta is expected"),
        ({"unit": "norms"}, "one of norm, alpha is expected"),
        ({"power": "1/2"}, r"one of \+1/2, 0, -1/2 is expected"),
        ({"power": 0.5}, r"one of \+1/2, 0, -1/2 is expected"),
    ],
)
def test_an_option_that_steering_does_not_know_is_refused(how: dict[str, Any], told: str) -> None:
    bundle = atomscope.open(GOLDEN)
    with pytest.raises(SteeringError, match=told):
        bundle.steer({bundle.atoms[0]: 0.1}, **how)


def test_a_bundle_is_known_by_files_that_each_has() -> None:
    assert set(BUNDLE_FILES) == {layout.MANIFEST, layout.REPORT, layout.ATOMS}


def test_a_steered_adapter_is_not_saved_within_a_bundle(copied: Path, tmp_path: Path) -> None:
    steered = atomscope.open(copied).steer({1: 0.1})
    there = sorted(copied.rglob("*"))
    (tmp_path / "link").symlink_to(copied / "atoms")
    for folder in (copied / "steered", copied / "atoms" / "a" / "b", tmp_path / "link" / "steered"):
        with pytest.raises(atomscope.UsageError, match=r"is within the bundle .*: give another folder"):
            steered.save(folder)
    assert sorted(copied.rglob("*")) == there
    assert steered.save(copied / ".." / "beside").is_dir()


def test_two_bundles_of_one_store_are_kept_apart(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for prefix in ("a/", "a/b/"):
        for path in GOLDEN.rglob("*"):
            if path.is_file():
                store.put_file(f"{prefix}{path.relative_to(GOLDEN).as_posix()}", path)
    Bundle(store, "a/b/").verify()
    with pytest.raises(atomscope.BundleError, match=r"b/manifest\.json is not listed|b/adapter"):
        Bundle(store, "a/").verify()


def test_its_name_shows_nothing_that_acts_on_a_terminal(copied: Path) -> None:
    manifest = json.loads((copied / layout.MANIFEST).read_bytes())
    manifest["audit_id"] = "\x1b[2J\u202e"
    (copied / layout.MANIFEST).write_text(json.dumps(manifest))
    assert repr(atomscope.open(copied)).isprintable()
