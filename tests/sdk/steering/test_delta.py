"""A delta adapter: what it adds is linear in the strength, whatever scale each layer of the adapter has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from atomscope.errors import SteeringError
from atomscope.steering import CONFIG, PROVENANCE, WEIGHTS, norm, read_tensors
from atomscope.steering.scaling import scaling
from tests.sdk.steering.lora import SCALES, SHAPES, linear, matrices, product, steered, steps, write_adapter


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_delta_is_the_part_of_the_step_that_is_linear_in_the_strength(dtype: Any, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", dtype)
    tensors = read_tensors(steered(adapter, 0.2, format="delta").save(tmp_path / "out") / WEIGHTS)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    for layer, (rows, rank, columns) in SHAPES.items():
        assert tensors[f"base_model.model.{layer}.lora_A.weight"].shape == (2 * rank, columns)
        assert tensors[f"base_model.model.{layer}.lora_B.weight"].shape == (rows, 2 * rank)
        assert np.allclose(product(tensors, layer), linear(0.2, layer, dtype), rtol=1e-5, atol=1e-6)


def test_strengths_scale_a_delta_and_signs_turn_it_about(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    one, other = (steered(adapter, strength, format="delta").tensors for strength in (0.1, -0.3))
    for layer in SHAPES:
        assert np.allclose(product(other, layer), -3 * product(one, layer), rtol=1e-5, atol=1e-6)


def test_every_layers_scale_is_one_to_whoever_reads_the_config(tmp_path: Path) -> None:
    """With its patterns and without, as servers do that know none."""
    adapter = write_adapter(tmp_path / "adapter", use_rslora=False, fan_in_fan_out=True)
    config = json.loads((steered(adapter, 0.1, format="delta").save(tmp_path / "out") / CONFIG).read_text())
    assert config["lora_alpha"] == config["r"] == 6
    assert [scaling(config, layer, 2 * rank) for layer, (_, rank, _) in SHAPES.items()] == [1.0, 1.0]
    assert (config["use_rslora"], config["fan_in_fan_out"]) == (False, True)
    assert config["target_modules"] == ["q_proj", "down_proj"]
    assert config["lora_dropout"] == 0


def test_a_rank_stabilised_scale_is_in_the_matrices(tmp_path: Path) -> None:
    plain = write_adapter(tmp_path / "plain")
    stable = write_adapter(tmp_path / "stable", use_rslora=True)
    one, other = (steered(adapter, 0.1, format="delta").tensors for adapter in (plain, stable))
    for layer, (_, rank, _) in SHAPES.items():
        assert np.allclose(product(other, layer), np.sqrt(rank) * product(one, layer), rtol=1e-5, atol=1e-6)


def test_provenance_tells_the_share_of_what_is_not_linear(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    out = steered(adapter, 0.2, format="delta").save(tmp_path / "out")
    step = steps(0.2)
    left_out = {layer: SCALES[layer] * product(step, layer) for layer in SHAPES}
    kept = {layer: linear(0.2, layer) for layer in SHAPES}
    told = json.loads((out / PROVENANCE).read_text())
    assert told["second_order"] == pytest.approx(norm(left_out) / norm(kept))
    # What is left out is all that parts the delta from the adapter of the same rank.
    moved = {name: matrices(0)[name] + step[name] for name in step}
    for layer in SHAPES:
        whole = SCALES[layer] * (product(moved, layer) - product(matrices(0), layer))
        assert np.allclose(kept[layer] + left_out[layer], whole)


def test_a_delta_of_strength_zero_adds_nothing(tmp_path: Path) -> None:
    found = steered(write_adapter(tmp_path / "adapter"), 0.0, format="delta")
    assert found.provenance.second_order is None
    assert not any(product(found.tensors, layer).any() for layer in SHAPES)


@pytest.mark.parametrize("settings", [{"lora_alpha": None}, {"r": 5}, {"rank_pattern": {}}])
def test_an_adapter_of_unknown_scale_has_no_delta(settings: dict[str, Any], tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", **settings)
    with pytest.raises(SteeringError, match=r"adapter_config\.json"):
        steered(adapter, 0.1, format="delta")
    steered(adapter, 0.1)


def test_numbers_that_float32_cannot_hold_are_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", lora_alpha=1e39)
    with pytest.raises(SteeringError, match="does not fit float32"):
        steered(adapter, 0.1, format="delta")
