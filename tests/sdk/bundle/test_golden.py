"""The golden bundle of format 1 is read to exact values, and today's writer still writes it.

A failure here means that the format has changed: see `golden_bundle.py` for what to do then.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

import atomscope
from atomscope.bundle import json_schemas, layout, read_coefficients, read_documents
from atomscope.steering import read_tensors
from atomscope.types.atoms import DroppedDocument
from atomscope.types.bundle import Manifest
from atomscope.types.labels import Labels
from tests.sdk.bundle import golden_bundle as made
from tests.sdk.bundle.golden_bundle import GOLDEN

PATHS = sorted(path.relative_to(GOLDEN).as_posix() for path in GOLDEN.rglob("*") if path.is_file())
JSON_FILES = [
    layout.PLAN,
    layout.REPORT,
    layout.ATOMS,
    layout.BEHAVIOURS,
    layout.HIERARCHY,
    layout.LABELS,
    layout.DROPPED,
    layout.ADAPTER_CONFIG,
    layout.BASE_CONFIG,
]


@pytest.fixture(scope="module")
def bundle() -> atomscope.Bundle:
    return atomscope.open(GOLDEN)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.make_bundle(tmp_path_factory.mktemp("written"))


def test_it_is_whole_and_of_format_1(bundle: atomscope.Bundle) -> None:
    bundle.verify()
    assert bundle.manifest.format_version == 1
    assert (bundle.manifest.kind, bundle.manifest.audit_id) == ("audit", made.AUDIT_ID)
    assert bundle.manifest.created_at == made.CREATED_AT
    assert [entry.path for entry in bundle.manifest.files] == [
        path for path in PATHS if path != "manifest.json"
    ]


def test_its_json_files_are_read_to_what_they_were_made_of(bundle: atomscope.Bundle) -> None:
    assert bundle.plan == made.PLAN
    assert bundle.report == made.REPORT
    assert [atom.atom for atom in bundle.atoms] == made.ATOMS
    assert [item.behaviour for item in bundle.behaviours] == made.BEHAVIOURS
    assert bundle.hierarchy == made.HIERARCHY
    assert bundle.hierarchy.groups() == [sorted(item.atoms) for item in made.BEHAVIOURS]
    labels = bundle.file(layout.LABELS).read_bytes()
    assert msgspec.json.decode(labels, type=Labels) == made.LABELS
    dropped = bundle.file(layout.DROPPED).read_bytes()
    assert msgspec.json.decode(dropped, type=list[DroppedDocument]) == made.DROPPED
    assert msgspec.structs.replace(bundle.spec, config=made.SPEC.config) == made.SPEC
    assert (bundle.spec.config.components, bundle.spec.config.vector_power) == (3, "-1/2")


def test_its_tables_are_read_to_what_they_were_made_of(bundle: atomscope.Bundle) -> None:
    assert list(bundle.documents.items()) == [(record.document, record) for record in made.DOCUMENTS]
    codes = bundle.coefficients
    assert codes.document.tolist() == [0, 2, 0, 3]
    assert codes.atom.tolist() == [0, 0, 1, 1]
    assert codes.value.tolist() == [1e-9, 0.5, 0.75, -0.25]
    assert (codes.document.dtype, codes.atom.dtype, codes.value.dtype) == (np.int64, np.int32, np.float64)


def test_its_tensors_are_read_by_name(bundle: atomscope.Bundle) -> None:
    shards = list(bundle.gradients())
    assert [shard["document"].tolist() for shard in shards] == [[0, 2], [3]]
    for shard, rows in zip(shards, ([0, 2], [3]), strict=True):
        assert shard.keys() == {"document", *made.ADAPTER}
        for name, tensor in made.ADAPTER.items():
            assert (shard[name].dtype, shard[name].shape) == (np.float32, (len(rows), *tensor.shape))
            for at, row in enumerate(rows):
                assert (shard[name][at] == row + 0.5).all()
    for atom in bundle.atoms:
        found = atom.vector()
        assert found.keys() == made.ADAPTER.keys()
        for name, tensor in made.ADAPTER.items():
            assert (found[name].dtype, found[name].shape) == (np.float32, tensor.shape)
            assert (found[name] == atom.index + 0.25).all()


def test_it_holds_the_adapter_that_was_audited(bundle: atomscope.Bundle, tmp_path: Path) -> None:
    adapter = read_tensors(bundle.steer({1: 0.0}).save(tmp_path / "same") / "adapter_model.safetensors")
    assert adapter["base_model.model.q_proj.lora_B.weight"].dtype == ml_dtypes.bfloat16
    for name, tensor in made.ADAPTER.items():
        np.testing.assert_array_equal(adapter[f"base_model.model.{name}"], tensor)


@pytest.mark.parametrize("path", JSON_FILES)
def test_todays_writer_writes_the_same_json(written: Path, path: str) -> None:
    assert (written / path).read_bytes() == (GOLDEN / path).read_bytes()


def test_todays_writer_writes_the_same_spec_but_for_settings_that_came_or_went(written: Path) -> None:
    old, new = (json.loads((folder / layout.SPEC).read_bytes()) for folder in (GOLDEN, written))
    assert isinstance(old.pop("config"), dict)
    assert isinstance(new.pop("config"), dict)
    assert old == new


def test_todays_writer_lists_the_same_files_in_a_manifest_of_the_same_shape(written: Path) -> None:
    old, new = (json.loads((folder / layout.MANIFEST).read_bytes()) for folder in (GOLDEN, written))
    assert old.keys() == new.keys()
    assert [entry["path"] for entry in old["files"]] == [entry["path"] for entry in new["files"]]
    assert old["format_version"] == new["format_version"]
    assert msgspec.json.decode((written / layout.MANIFEST).read_bytes(), type=Manifest).files


@pytest.mark.parametrize("path", [path for path in PATHS if path.endswith(".safetensors")])
def test_todays_writer_writes_the_same_tensors(written: Path, path: str) -> None:
    old, new = (read_tensors(folder / path, integers=True) for folder in (GOLDEN, written))
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        assert tensor.dtype == new[name].dtype
        np.testing.assert_array_equal(tensor, new[name])


def test_todays_writer_writes_the_same_tables(written: Path) -> None:
    for path in (layout.DOCUMENTS, layout.COEFFICIENTS):
        assert pq.read_schema(GOLDEN / path).equals(pq.read_schema(written / path))
    assert read_documents(written / layout.DOCUMENTS) == made.DOCUMENTS
    old, new = (read_coefficients(folder / layout.COEFFICIENTS) for folder in (GOLDEN, written))
    assert [*zip(old.document, old.atom, old.value, strict=True)] == [
        *zip(new.document, new.atom, new.value, strict=True)
    ]


def test_the_types_still_give_the_schemas_of_the_format() -> None:
    for path, content in json_schemas().items():
        assert _shape(json.loads(content)) == _shape(json.loads((GOLDEN / path).read_bytes())), path


def _shape(schema: Any) -> Any:
    """A schema without words, defaults and the settings of the audit, which a reader takes as they come."""
    if isinstance(schema, dict):
        dropped = {"description", "title", "default", "AuditConfig"}
        return {name: _shape(value) for name, value in schema.items() if name not in dropped}
    return [_shape(value) for value in schema] if isinstance(schema, list) else schema
