"""Adding steering vectors to an adapter's weights.

    theta' = theta + sum_j s_j * ||theta|| * v_j / ||v_j||

over all LoRA parameters together. A vector is minus the gradient direction of its atom's documents, so
adding it (s > 0) lowers their loss: more of the behaviour. Strengths are in units of the adapter's own
norm: 0.1 moves the weights by a tenth of their length. Sums are float64; the cast to the adapter's dtype
comes last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomscope.errors import SteeringError
from atomscope.text import visible

Vector = Mapping[str, NDArray[Any]]
"""One tensor for each LoRA parameter, named and shaped as in the adapter."""

LARGEST = 100.0
"""Strength, in norms of the adapter, beyond which nothing of the adapter would be left."""

_SHOWN = 3


def norm(tensors: Vector) -> float:
    """Euclidean norm over all tensors together; infinite or NaN where their numbers are."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.hypot(*(float(np.linalg.norm(tensor.astype(np.float64))) for tensor in tensors.values()))


def steer(
    adapter: Vector, vectors: Mapping[int, Vector], strengths: Mapping[int, float]
) -> dict[str, NDArray[Any]]:
    """The steered weights, in the adapter's own dtypes and order; under strengths of zero, its own bits.

    Memory: the result, and two float64 copies of the largest tensor.

    `vectors` holds the vector of every atom in `strengths`. Raises `SteeringError` when no strength is
    given, one is not finite or beyond `LARGEST`, a vector is missing, is zero, or does not match the adapter
    by name and shape, and when the result is not finite in the adapter's dtype.
    """
    if not strengths:
        raise SteeringError("no strength was given: name at least one atom")
    size = norm(adapter)
    if not math.isfinite(size) or size == 0:
        raise SteeringError(f"the adapter's norm is {size}: strengths are in units of it")
    steps: list[tuple[Vector, float]] = []
    for atom, strength in sorted(strengths.items()):
        if not math.isfinite(strength):
            raise SteeringError(f"the strength of atom {atom} is {strength}, not a finite number")
        if abs(strength) > LARGEST:
            raise SteeringError(
                f"the strength of atom {atom} is {strength:g}; at most {LARGEST:g} adapter norms are accepted"
            )
        if atom not in vectors:
            raise SteeringError(f"there is no vector of atom {atom}")
        check_match(adapter, vectors[atom], f"the vector of atom {atom}")
        length = norm(vectors[atom])
        if not math.isfinite(length) or length == 0:
            raise SteeringError(f"the vector of atom {atom} has norm {length}: it has no direction")
        if strength != 0:
            steps.append((vectors[atom], strength * size / length))
    return {name: _moved(name, tensor, steps) for name, tensor in adapter.items()}


def _moved(name: str, tensor: NDArray[Any], steps: list[tuple[Vector, float]]) -> NDArray[Any]:
    if not steps:
        return tensor
    total = tensor.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for vector, scale in steps:
            total += scale * vector[name].astype(np.float64)
        cast = total.astype(tensor.dtype)
    if not np.isfinite(cast.astype(np.float64)).all():
        raise SteeringError(
            f"the steered {visible(name)} does not fit {tensor.dtype}: use a smaller strength"
        )
    return cast


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
