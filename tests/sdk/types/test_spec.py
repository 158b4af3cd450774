"""What a client may ask for: every setting has a default and a range, and nothing unknown passes."""

from __future__ import annotations

import json
from typing import Any, get_type_hints

import msgspec
import pytest

from atomscope.types.resources import AuditCreate
from atomscope.types.spec import FORMAT_VERSION, AuditConfig, AuditSpec, InputRef


def config(**settings: Any) -> AuditConfig:
    return msgspec.json.decode(json.dumps(settings), type=AuditConfig)


EDGES = {
    "max_length": [8, 131_072],
    "token_budget": [1, 2**40, "auto"],
    "shard_documents": [1],
    "components": [1],
    "damping": [1e-12, 100],
    "n_atoms": [1, "auto"],
    "alpha": [1e-12, 50.0, "auto"],
    "codes": ["nonnegative", "signed"],
    "codes_per_document": [1.0, 100.0],
    "exact_documents": [1],
    "directions": [1, 16_384],
    "sketch_columns": [64, 65_536, "auto"],
    "fits": [1, 50],
    "surrogates": [0, 50],
    "behaviours": [1, 500, "auto"],
    "pieces": [1, "auto"],
    "min_active": [2],
    "top_documents": [2, 1000],
    "seed": [0, 2**32 - 1],
    "dtype": ["auto", "float32", "bfloat16"],
    "gradients": ["auto", "float32", "bfloat16", "float16", "sketch", "none"],
    "preconditioner": ["ekfac-full", "ekfac", "kfac"],
    "vector_power": ["+1/2", "0", "-1/2"],
    "on_bad_row": ["fail", "skip"],
    "row_form": ["auto", "messages", "conversations", "instruction", "prompt", "text"],
    "chat_template": ["tokenizer", "adapter", "chatml", "llama3", "gemma", "zephyr", "alpaca", "{{", "{%"],
    "solver": ["torch", "sklearn"],
    "labels": [True, False],
}
NEEDED = {"sklearn": {"codes": "signed", "alpha": 0.1}}
"""What else a value asks for."""
BEYOND = {
    "max_length": [7, 131_073, 8.5, "8", None],
    "token_budget": [0, -1, "all"],
    "shard_documents": [0],
    "components": [0, 1.5, True],
    "damping": [0, -0.1, 100.5],
    "n_atoms": [0, "all", 2.5],
    "alpha": [0, -1, "all"],
    "codes": ["positive"],
    "codes_per_document": [0.5, 101],
    "exact_documents": [0],
    "directions": [0, 16_385],
    "sketch_columns": [63, 65_537, "all"],
    "fits": [0, 51],
    "surrogates": [-1, 51],
    "behaviours": [0, 501, "all"],
    "pieces": [0, "all"],
    "min_active": [1],
    "top_documents": [1, 1001],
    "seed": [-1, 2**32],
    "dtype": ["float16", ""],
    "gradients": ["sketched", "int8", None],
    "preconditioner": ["none"],
    "vector_power": ["1/2", 0],
    "on_bad_row": [True],
    "row_form": ["alpaca", "completion", "", None],
    "chat_template": ["", "chatm", "chatml ", "no braces", "{{" + "x" * 65_536, None],
    "solver": ["fista"],
    "labels": ["yes", 1, None],
}


def _cases(table: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}={value}") for name, values in table.items() for value in values
    ]


def test_every_setting_has_a_default_within_its_range() -> None:
    assert config() == AuditConfig()
    filled = json.loads(msgspec.json.encode(AuditConfig()))
    assert filled.keys() == get_type_hints(AuditConfig).keys() == EDGES.keys() == BEYOND.keys()
    assert config(**filled) == AuditConfig()


@pytest.mark.parametrize(("name", "value"), _cases(EDGES))
def test_the_edges_of_a_range_are_accepted_and_kept(name: str, value: Any) -> None:
    assert getattr(config(**{name: value}, **NEEDED.get(value, {})), name) == value


@pytest.mark.parametrize(("name", "value"), _cases(BEYOND))
def test_what_lies_beyond_is_refused_by_field(name: str, value: Any) -> None:
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{name}"):
        config(**{name: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["alpha", "damping", "codes_per_document"])
def test_numbers_that_are_not_finite_are_refused(name: str, value: float) -> None:
    with pytest.raises(msgspec.ValidationError, match=name):
        msgspec.convert({name: value}, AuditConfig)


@pytest.mark.parametrize("missing", ["codes", "alpha"])
def test_the_sklearn_solver_says_what_else_it_needs(missing: str) -> None:
    settings = {name: value for name, value in NEEDED["sklearn"].items() if name != missing}
    with pytest.raises(msgspec.ValidationError, match=missing):
        config(solver="sklearn", **settings)


def test_an_unknown_setting_is_refused_in_a_request_too() -> None:
    with pytest.raises(msgspec.ValidationError, match="alhpa"):
        config(alhpa=0.1)
    body = {"base_model": "mdl_1", "adapter": "ada_1", "dataset": "ds_1"}
    with pytest.raises(msgspec.ValidationError, match="priority"):
        msgspec.convert(body | {"priority": 1}, AuditCreate)


def test_a_config_cannot_be_changed_and_serves_as_a_key() -> None:
    settings = AuditConfig()
    with pytest.raises(AttributeError):
        settings.seed = 1  # type: ignore[misc]
    assert {settings: 1}[AuditConfig()] == 1


def test_a_spec_states_every_default_and_the_format() -> None:
    ref = InputRef(id="local", location="/data", sha256="0" * 64, size=1)
    spec = AuditSpec(
        audit_id="aud_1", project_id="prj_1", base_model=ref, adapter=ref, dataset=ref, config=AuditConfig()
    )
    written = json.loads(msgspec.json.encode(spec))
    assert written["format_version"] == FORMAT_VERSION
    assert written["config"].keys() == EDGES.keys()
    assert msgspec.json.decode(json.dumps(written), type=AuditSpec) == spec
