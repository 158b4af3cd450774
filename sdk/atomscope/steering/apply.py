"""Adding steering vectors to an adapter's weights.

    theta' = theta + sum_j a_j v_j,     a_j = s_j ||theta|| / ||v_j||

over all LoRA parameters together. A vector is minus the gradient direction of its documents, so adding it
(s > 0) lowers their loss: more of the behaviour. Strengths s are in units of the adapter's own norm: 0.1
moves the weights by a tenth of their length. Under the unit `alpha` they are the factors a themselves, as in
the paper (section 3.5). Sums are float64; the cast to the adapter's dtype comes last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomscope.errors import SteeringError, StrengthError
from atomscope.steering.targets import Target, check_strengths
from atomscope.text import visible
from atomscope.types.steering import Unit

Vector = Mapping[str, NDArray[Any]]
"""One tensor for each LoRA parameter, named and shaped as in the adapter."""

LARGEST = 100.0
"""Strength, in norms of the adapter, beyond which nothing of the adapter would be left."""

_SHOWN = 3


@dataclass(frozen=True)
class Step:
    """theta' - theta: vectors, each times a number; added up when a tensor of it is asked for."""

    parts: tuple[tuple[Vector, float], ...]
    factors: Mapping[Target, float]
    """What the vector of each target is multiplied by."""
    adapter_norm: float

    def of(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """The step of one tensor, float64."""
        total = np.zeros(shape)
        with np.errstate(over="ignore", invalid="ignore"):
            for vector, factor in self.parts:
                total += factor * vector[name].astype(np.float64)
        return total


def norm(tensors: Vector) -> float:
    """Euclidean norm over all tensors together; infinite or NaN where their numbers are."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.hypot(*(float(np.linalg.norm(tensor.astype(np.float64))) for tensor in tensors.values()))


def plan_step(
    adapter: Vector,
    vectors: Mapping[Target, Vector],
    strengths: Mapping[Target, float],
    unit: Unit = "norm",
) -> Step:
    """How far each vector goes.

    `vectors` holds the vector of every target in `strengths`. Raises `SteeringError` when no strength is
    given, one is not finite, a vector is missing, is zero, or does not match the adapter by name and shape;
    `StrengthError` for a strength beyond `LARGEST` norms of the adapter.
    """
    check_strengths(strengths)
    size = norm(adapter)
    if not math.isfinite(size) or size == 0:
        raise SteeringError(f"the adapter's norm is {size}: strengths are in units of it")
    factors: dict[Target, float] = {}
    for target, strength in sorted(strengths.items()):
        if target not in vectors:
            raise SteeringError(f"there is no vector of {target}")
        check_match(adapter, vectors[target], f"the vector of {target}")
        length = norm(vectors[target])
        if not math.isfinite(length) or length == 0:
            raise SteeringError(f"the vector of {target} has norm {length}: it has no direction")
        norms = strength if unit == "norm" else strength * length / size
        if abs(norms) > LARGEST:
            raise StrengthError(
                f"the strength of {target} is {norms:g} adapter norms; at most {LARGEST:g} adapter norms are "
                "accepted"
            )
        factors[target] = strength * size / length if unit == "norm" else strength
    parts = tuple((vectors[target], factor) for target, factor in factors.items() if factor != 0)
    return Step(parts, factors, size)


def steer(
    adapter: Vector,
    vectors: Mapping[Target, Vector],
    strengths: Mapping[Target, float],
    unit: Unit = "norm",
) -> dict[str, NDArray[Any]]:
    """The steered weights, in the adapter's own dtypes and order; under strengths of zero, its own bits.

    Memory: the result, and three float64 copies of the largest tensor. Raises `SteeringError` as `plan_step`
    and `moved` do.
    """
    return moved(adapter, plan_step(adapter, vectors, strengths, unit))


def moved(adapter: Vector, step: Step) -> dict[str, NDArray[Any]]:
    """The adapter's weights after the step, each cast to its own dtype last.

    Raises `SteeringError` when the result is not finite in that dtype.
    """
    return {name: _moved(name, tensor, step) for name, tensor in adapter.items()}


def _moved(name: str, tensor: NDArray[Any], step: Step) -> NDArray[Any]:
    if not step.parts:
        return tensor
    with np.errstate(over="ignore", invalid="ignore"):
        cast = (tensor.astype(np.float64) + step.of(name, tensor.shape)).astype(tensor.dtype)
    check_finite(name, cast)
    return cast


def check_finite(name: str, tensor: NDArray[Any]) -> None:
    """Raise `SteeringError` where the cast left numbers that the dtype cannot hold."""
    if not np.isfinite(tensor.astype(np.float64)).all():
        raise SteeringError(
            f"the steered {visible(name)} does not fit {tensor.dtype}: use a smaller strength"
        )


def check_match(adapter: Vector, other: Vector, what: str) -> None:
    """Raise `SteeringError` unless `other` has the adapter's names and shapes."""
    missing, extra = sorted(adapter.keys() - other.keys()), sorted(other.keys() - adapter.keys())
    shapes = [name for name in adapter if name in other and adapter[name].shape != other[name].shape]
    if missing or extra or shapes:
        told = [
            f"{label}: {visible(', '.join(names[:_SHOWN]))}{' ...' if len(names) > _SHOWN else ''}"
            for label, names in (
                ("missing", missing),
                ("not in the adapter", extra),
                ("of another shape", shapes),
            )
            if names
        ]
        raise SteeringError(f"{what} does not match the adapter; {'; '.join(told)}")
