"""Steered weights against a float64 reference, in every dtype that adapters come in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from atomscope.errors import SteeringError
from atomscope.steering import Target, norm
from atomscope.steering import steer as steer_targets

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
SHAPES = {"b.lora_B.weight": (5, 3), "a.lora_A.weight": (3, 7), "a.lora_B.weight": (4, 3)}


def tensors(seed: int, dtype: Any = np.float32, scale: float = 1.0) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    return {name: (scale * random.normal(size=shape)).astype(dtype) for name, shape in SHAPES.items()}


def steer(
    adapter: Any, vectors: Mapping[int, Any], strengths: Mapping[int, float], **how: Any
) -> dict[str, NDArray[Any]]:
    """`steer`, of atoms by index."""
    by_atom = {Target("atom", index): vector for index, vector in vectors.items()}
    wanted = {Target("atom", index): strength for index, strength in strengths.items()}
    return steer_targets(adapter, by_atom, wanted, **how)


def flat(found: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    return np.concatenate([found[name].astype(np.float64).ravel() for name in SHAPES])


def ulp(values: NDArray[Any]) -> NDArray[np.float64]:
    """The gap to the next larger number of the dtype, for each value, in float64."""
    info = ml_dtypes.finfo(values.dtype)
    exponent = np.floor(np.log2(np.maximum(np.abs(values.astype(np.float64)), float(info.smallest_normal))))
    return 2.0**exponent * float(info.eps)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("strengths", [{3: 0.1}, {3: -2.0}, {3: 0.1, 0: -0.05, 12: 1.0}])
def test_the_result_is_within_one_ulp_of_float64(dtype: Any, strengths: dict[int, float]) -> None:
    adapter = tensors(0, dtype, scale=0.02)
    vectors = {atom: tensors(atom + 1, scale=1e3) for atom in strengths}
    theta = flat(adapter)
    wanted = theta.copy()
    for atom, strength in strengths.items():
        direction = flat(vectors[atom])
        wanted += strength * np.linalg.norm(theta) * direction / np.linalg.norm(direction)
    steered = steer(adapter, vectors, strengths)
    assert list(steered) == list(adapter)
    assert {tensor.dtype for tensor in steered.values()} == {np.dtype(dtype)}
    found = np.concatenate([steered[name].ravel() for name in SHAPES])
    assert (np.abs(found.astype(np.float64) - wanted) <= ulp(found)).all()
    assert (found != theta.astype(dtype)).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_strength_of_zero_gives_identical_bytes(dtype: Any) -> None:
    adapter = tensors(0, dtype)
    adapter["a.lora_A.weight"][0, :2] = [-0.0, 0.0]
    steered = steer(adapter, {1: tensors(1), 2: tensors(2)}, {1: 0.0, 2: -0.0})
    assert {name: tensor.tobytes() for name, tensor in steered.items()} == {
        name: tensor.tobytes() for name, tensor in adapter.items()
    }


def test_a_strength_is_the_length_of_the_step_in_adapter_norms() -> None:
    adapter, vector = tensors(0, np.float64), tensors(1, np.float64, scale=17.0)
    steered = steer(adapter, {4: vector}, {4: 0.25})
    step = flat(steered) - flat(adapter)
    assert np.linalg.norm(step) == pytest.approx(0.25 * norm(adapter), rel=1e-12)
    cosine = step @ flat(vector) / np.linalg.norm(step) / norm(vector)
    assert cosine == pytest.approx(1.0, abs=1e-12)


def test_tensors_are_matched_by_name_whatever_their_order() -> None:
    adapter, vector = tensors(0), tensors(1)
    shuffled = dict(sorted(vector.items(), reverse=True))
    assert list(shuffled) != list(vector)
    one, other = steer(adapter, {0: vector}, {0: 1.0}), steer(adapter, {0: shuffled}, {0: 1.0})
    assert all((one[name] == other[name]).all() for name in SHAPES)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.integers(0, 5), st.floats(-3, 3), min_size=1), st.randoms(use_true_random=False))
def test_the_order_of_the_atoms_does_not_matter(strengths: dict[int, float], random: Any) -> None:
    adapter, vectors = tensors(0), {atom: tensors(atom + 1) for atom in range(6)}
    items = list(strengths.items())
    random.shuffle(items)
    one, other = steer(adapter, vectors, strengths), steer(adapter, vectors, dict(items))
    assert all(one[name].tobytes() == other[name].tobytes() for name in SHAPES)


def test_inputs_are_left_alone() -> None:
    adapter, vector = tensors(0), tensors(1)
    for tensor in (*adapter.values(), *vector.values()):
        tensor.flags.writeable = False
    steer(adapter, {0: vector}, {0: 1.0})


def test_no_strength_at_all_is_refused() -> None:
    with pytest.raises(SteeringError, match="name at least one atom"):
        steer(tensors(0), {}, {})


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf])
def test_a_strength_that_is_no_number_is_refused(strength: float) -> None:
    with pytest.raises(SteeringError, match=r"atom 7.*not a finite number"):
        steer(tensors(0), {7: tensors(1)}, {7: strength})


def test_an_unknown_atom_is_refused() -> None:
    with pytest.raises(SteeringError, match="no vector of atom 8"):
        steer(tensors(0), {7: tensors(1)}, {7: 0.1, 8: 0.1})


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_vector_without_a_direction_is_refused(value: float, strength: float) -> None:
    vector = tensors(1)
    for tensor in vector.values():
        tensor[...] = 0
    vector["b.lora_B.weight"][0, 0] = value
    with pytest.raises(SteeringError, match=r"atom 7 .*no direction"):
        steer(tensors(0), {7: vector}, {7: strength})


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_an_adapter_without_a_norm_is_refused(value: float) -> None:
    adapter = {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}
    with pytest.raises(SteeringError, match="adapter's norm"):
        steer(adapter, {7: tensors(1)}, {7: 0.1})


def test_names_and_shapes_that_differ_are_named() -> None:
    vector = tensors(1)
    del vector["a.lora_A.weight"]
    vector["stranger\x1b[31m"] = np.ones(3, np.float32)
    vector["a.lora_B.weight"] = vector["a.lora_B.weight"].T
    with pytest.raises(SteeringError) as raised:
        steer(tensors(0), {7: vector}, {7: 0.0})
    message = str(raised.value)
    assert "the vector of atom 7" in message
    assert "missing: a.lora_A.weight" in message
    assert "not in the adapter: stranger\\x1b[31m" in message
    assert "of another shape: a.lora_B.weight" in message


def test_a_step_that_the_dtype_cannot_hold_is_refused() -> None:
    large = {name: (tensor * 1e3).astype(np.float16) for name, tensor in tensors(0).items()}
    with pytest.raises(SteeringError, match="does not fit float16: use a smaller strength"):
        steer(large, {7: tensors(1)}, {7: 99.0})


@pytest.mark.parametrize("strength", [100.5, -1e30])
def test_a_strength_beyond_all_sense_is_refused_with_the_limit(strength: float) -> None:
    weights = {"a": np.ones((2, 2), np.float32)}
    with pytest.raises(SteeringError, match="at most 100 adapter norms"):
        steer(weights, {0: weights}, {0: strength})


def test_an_atom_and_a_behaviour_of_one_index_are_two_and_their_steps_add_up() -> None:
    adapter = tensors(0, np.float64)
    both = {Target("atom", 3): tensors(1), Target("behaviour", 3): tensors(2)}
    strengths = {Target("behaviour", 3): -0.1, Target("atom", 3): 0.2}
    wanted = flat(adapter) + norm(adapter) * (
        0.2 * flat(tensors(1)) / norm(tensors(1)) - 0.1 * flat(tensors(2)) / norm(tensors(2))
    )
    assert np.allclose(flat(steer_targets(adapter, both, strengths)), wanted, rtol=1e-12)


def test_alpha_multiplies_the_vector_as_it_is() -> None:
    adapter, vector = tensors(0, np.float64), tensors(1, np.float64, scale=17.0)
    steered = steer(adapter, {4: vector}, {4: -0.5}, unit="alpha")
    assert np.allclose(flat(steered), flat(adapter) - 0.5 * flat(vector), rtol=1e-12)


def test_alpha_is_bound_in_norms_of_the_adapter_too() -> None:
    weights = {"a": np.ones((2, 2), np.float32)}
    small = {"a": np.full((2, 2), 1e-3, np.float32)}
    steer(weights, {0: small}, {0: 1000.0}, unit="alpha")
    with pytest.raises(SteeringError, match="is 101 adapter norms; at most 100"):
        steer(weights, {0: small}, {0: 101_000.0}, unit="alpha")
