"""Where the adapter is moved: along a target, at random by the same norm or the same cost, or elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomscope.bundle import Bundle, layout
from atomscope.bundle.directions import atom_weights, directions
from atomscope.errors import InvalidInput, SteeringError
from atomscope.steering import Target, Vector, plan_step
from atomscope.steering.adapter import read_adapter
from atomscope.types.spec import VectorPower
from atomscope.types.steering import Unit
from atomscope_workers.evaluation.documents import touched
from atomscope_workers.pipeline.seeds import drawn
from atomscope_workers.steered import StepOf

CLOSE = 0.1
"""Share by which a matched cost may be off."""
MATCHES = 8
"""Most measurements to match one."""
NEAREST = 8
"""Atoms of least overlap whose vectors are compared."""


@dataclass(frozen=True)
class Dial:
    """A target's direction at any strength, in norms of the adapter."""

    vector: Vector
    factor: float
    """What the vector is multiplied by at a strength of one norm."""
    unit: float
    """Norms of the adapter that one of the query's strengths is."""

    def step(self, norms: float) -> StepOf:
        """The step of that many norms, to either side."""
        factor = norms * self.factor

        def of(name: str, _shape: tuple[int, ...]) -> NDArray[np.float64]:
            return factor * self.vector[name].astype(np.float64)

        return of

    @cached_property
    def lengths(self) -> dict[str, float]:
        """Norm of each tensor of the step of one norm of the adapter."""
        return {
            name: abs(self.factor) * float(np.linalg.norm(tensor.astype(np.float64)))
            for name, tensor in self.vector.items()
        }


def make_dial(
    bundle: Bundle, target: Target, power: VectorPower | None, unit: Unit, strengths: Collection[float] = ()
) -> Dial:
    """The dial of a target.

    Raises `InvalidInput` (`invalid_steering`) for a target that the audit does not have or that has no
    direction, and for a strength beyond the largest that is accepted.
    """
    try:
        vector = directions(bundle, [target], power)[target]
        bundle.file(layout.ADAPTER_WEIGHTS)
        adapter = read_adapter(bundle.file(layout.ADAPTER_CONFIG).parent).lora
        one = plan_step(adapter, {target: vector}, {target: 1.0})
        for strength in strengths:
            plan_step(adapter, {target: vector}, {target: strength}, unit)
    except SteeringError as error:
        raise InvalidInput("invalid_steering", str(error)) from error
    factor = one.factors[target]
    return Dial(vector, factor, 1.0 if unit == "norm" else 1 / factor)


# --------------------------------------------------------------------- random


def random_step(lengths: Mapping[str, float], seed: int, purpose: str, scale: float) -> StepOf:
    """A step in a random direction: each tensor normal noise of the norm given for it, times `scale`.

    The same seed and purpose give the same direction at every scale. Drawn anew whenever it is asked for.
    """

    def of(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        noise = drawn(seed, f"{purpose}/{name}").standard_normal(shape)
        length = float(np.linalg.norm(noise))
        return noise * (scale * lengths[name] / length if length > 0 else 0.0)

    return of


def matched_scale(cost: Callable[[float], float], wanted: float, first: tuple[float, float]) -> float:
    """The scale above 0 at which a direction costs `wanted`, within `CLOSE`; else the nearest that was tried.

    `first` is a scale and its cost. Cost rises about with the square of the scale: the next is taken on the
    line through the last two in the logarithms, kept between those that are known to be below and above.
    `cost` may say infinity. Measures it at most `MATCHES` times.
    """
    scale, found = first
    if wanted <= 0:
        return scale
    tried = [(scale, found)]
    low, high, slope = 0.0, math.inf, 2.0
    while len(tried) <= MATCHES and not _close(found, wanted):
        if found < wanted:
            low = max(low, scale)
        else:
            high = min(high, scale)
        if 0 < found < math.inf:
            following = scale * min(max((wanted / found) ** (1 / slope), 0.1), 10.0)
        else:
            following = scale * (4.0 if found == 0 else 0.25)
        if not low < following < high:
            following = math.sqrt(low * high) if low > 0 and high < math.inf else min(high / 2, 2 * low)
        if following in (scale, 0.0):
            break
        last, last_cost = scale, found
        scale = following
        found = cost(scale)
        tried.append((scale, found))
        if 0 < last_cost < math.inf and 0 < found < math.inf and found != last_cost:
            slope = min(max(math.log(found / last_cost) / math.log(scale / last), 0.5), 4.0)
    return min(tried, key=lambda item: _distance(item[1], wanted))[0]


def _close(found: float, wanted: float) -> bool:
    return abs(found - wanted) <= CLOSE * wanted


def _distance(found: float, wanted: float) -> float:
    return abs(math.log(found / wanted)) if 0 < found < math.inf else math.inf


# ------------------------------------------------------------------- unrelated


def unrelated_atom(bundle: Bundle, target: Target, dial: Dial, seed: int) -> int | None:
    """The reported atom that has least to do with a target; None where there is no other.

    None of the target's own; of the `NEAREST` whose documents overlap the target's least (as a share of
    both's), drawn among equals, the one whose vector has the cosine nearest 0 with the target's.
    """
    own = set(atom_weights(bundle, target)) | set(_members(bundle, target))
    theirs = touched(bundle, target)
    others = sorted(atom.index for atom in bundle.atoms if atom.index not in own)
    draw = drawn(seed, f"unrelated/{target.key}").permutation(len(others)).tolist()
    overlaps: dict[int, tuple[float, int]] = {}
    for atom, place in zip(others, draw, strict=True):
        mine = touched(bundle, Target("atom", atom))
        overlaps[atom] = (len(mine & theirs) / max(1, len(mine | theirs)), place)
    nearest = sorted(others, key=overlaps.__getitem__)[:NEAREST]
    least = {atom: (abs(_cosine(bundle.vector(atom), dial.vector)), overlaps[atom]) for atom in nearest}
    usable = [atom for atom in nearest if math.isfinite(least[atom][0])]
    return min(usable, key=least.__getitem__, default=None)


def _members(bundle: Bundle, target: Target) -> list[int]:
    return [target.index] if target.kind == "atom" else bundle.behaviours.get(target.index).behaviour.atoms


def _cosine(left: Mapping[str, NDArray[Any]], right: Mapping[str, NDArray[Any]]) -> float:
    """Cosine of two vectors over all tensors together; NaN where one has no length."""
    product = sum(float(np.vdot(tensor.astype(np.float64), right[name])) for name, tensor in left.items())
    square = math.prod(
        math.hypot(*(float(np.linalg.norm(tensor.astype(np.float64))) for tensor in side.values()))
        for side in (left, right)
    )
    return product / square if square > 0 else math.nan
