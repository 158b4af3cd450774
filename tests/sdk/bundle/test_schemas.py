"""The JSON Schemas that a bundle carries say what its reader accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from atomscope.bundle import json_schemas, layout
from atomscope.bundle.schemas import TYPES
from tests.sdk.bundle.golden_bundle import GOLDEN

FILES = sorted(TYPES)


def _schema(path: str) -> Any:
    return json.loads(json_schemas()[layout.schema(path)])


def _content(path: str) -> Any:
    return json.loads((GOLDEN / path).read_bytes())


def _is_read(path: str, content: object) -> bool:
    try:
        msgspec.json.decode(json.dumps(content), type=TYPES[path])
    except msgspec.ValidationError:
        return False
    return True


def test_each_file_has_a_schema_of_its_own() -> None:
    names = "atoms behaviours dropped hierarchy labels manifest plan report spec"
    assert sorted(json_schemas()) == [f"schemas/{name}.schema.json" for name in names.split()]


@pytest.mark.parametrize("path", FILES)
def test_a_schema_is_valid_and_names_its_dialect(path: str) -> None:
    schema = _schema(path)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("path", FILES)
def test_a_whole_file_conforms(path: str) -> None:
    Draft202012Validator(_schema(path)).validate(_content(path))


@pytest.mark.parametrize("path", FILES)
def test_schema_and_reader_refuse_the_same_files(path: str) -> None:
    """Each field of the file's objects left out, then holding another type."""
    validator, content = Draft202012Validator(_schema(path)), _content(path)
    refused = 0
    for target in content if isinstance(content, list) else [content]:
        for name in list(target):
            kept = target[name]
            del target[name]
            assert validator.is_valid(content) == _is_read(path, content), f"without {name}"
            for other in (None, {"a": [1.5]}):
                target[name] = other
                assert validator.is_valid(content) == _is_read(path, content), f"{name} = {other}"
                refused += not validator.is_valid(content)
            target[name] = kept
    assert refused > 4


def test_the_golden_bundle_carries_them() -> None:
    assert {path.name for path in Path(GOLDEN, "schemas").iterdir()} == {
        Path(path).name for path in json_schemas()
    }
