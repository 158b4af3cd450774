"""Steering directions of a bundle: an atom's stored vector, a behaviour's sum of them, in any power.

**A behaviour's direction** is the mean of its documents' whitened gradients, as far as its atoms explain it:

    v_b = sum_j m_j v_j,     m_j = mean over the behaviour's documents of their positive strength on atom j

over its atoms j. Unprojection (eq. 4) is linear, so this is that mean, unprojected, and needs neither
gradients nor curvature.

**The power** of (lambda + damping) in the unprojection is the audit's `vector_power`. Another one is reached
through the curvature that the bundle holds: per module, the vector is rotated by Q_S and Q_A, multiplied by
(lambda + damping) to the difference of the powers, and rotated back. Components that the audit did not keep
stay zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from atomscope.bundle import layout
from atomscope.errors import BundleError, SteeringError
from atomscope.steering import Target, Vector, check_choice, read_metadata, read_tensors
from atomscope.types.spec import VectorPower

if TYPE_CHECKING:
    from atomscope.bundle.reader import Bundle

_EXPONENTS: dict[VectorPower, float] = {"+1/2": 0.5, "0": 0.0, "-1/2": -0.5}


class _Facts(msgspec.Struct):
    groups: dict[str, str]
    """Module -> its input group."""
    damping: dict[str, float]


def directions(
    bundle: Bundle, targets: Iterable[Target], power: VectorPower | None = None
) -> dict[Target, Vector]:
    """The vector of each target, named and shaped as the LoRA parameters; in the audit's power, or another.

    Adding one raises its behaviour. Raises `SteeringError` for a target that the audit does not have, or that
    has no direction; `BundleError` where the files that are needed are missing or damaged.
    """
    if power is not None:
        check_choice("power", power, get_args(VectorPower))
    weights = {target: atom_weights(bundle, target) for target in targets}
    held = {
        atom: bundle.vector(atom) for atom in sorted({atom for part in weights.values() for atom in part})
    }
    found: dict[Target, Vector] = {}
    for target, part in weights.items():
        alone = target.kind == "atom"
        found[target] = held[target.index] if alone else _sum({atom: held[atom] for atom in part}, part)
    stored = bundle.spec.config.vector_power if power is not None else None
    if power is None or power == stored:
        return found
    powers = Powers(bundle.file(layout.CURVATURE))
    return {target: powers.change(vector, stored or "0", power) for target, vector in found.items()}


def atom_weights(bundle: Bundle, target: Target) -> dict[int, float]:
    """What the vectors of which atoms are multiplied by in the sum that is the target's direction.

    Raises `SteeringError` as `directions` does.
    """
    if target.kind == "atom":
        if not any(atom.index == target.index for atom in bundle.atoms):
            raise SteeringError(f"this audit has no {target}")
        return {target.index: 1.0}
    try:
        behaviour = bundle.behaviours.get(target.index).behaviour
    except KeyError as error:
        raise SteeringError(f"this audit has no {target}") from error
    documents = [member.document for member in behaviour.documents]
    found: dict[int, float] = {}
    for atom in behaviour.atoms:
        rows, values = bundle.coefficients.of_atom(atom)
        total = float(values[np.isin(rows, documents)].clip(min=0).sum())
        if total > 0:
            found[atom] = total / len(documents)
    if not found:
        raise SteeringError(f"{target} has no direction: none of its documents is active on its atoms")
    return found


def needed_files(bundle: Bundle, targets: Iterable[Target], power: VectorPower | None) -> set[str]:
    """The large files of the bundle that `directions` reads."""
    atoms = {atom for target in targets for atom in atom_weights(bundle, target)}
    found = {layout.vector(atom) for atom in atoms}
    if power is not None and power != bundle.spec.config.vector_power:
        found.add(layout.CURVATURE)
    return found


def _sum(vectors: Mapping[int, Vector], weights: Mapping[int, float]) -> dict[str, NDArray[np.float32]]:
    """The sum of vectors by atom, each times its weight, float32; added up in float64."""
    first = next(iter(vectors.values()))
    found: dict[str, NDArray[np.float32]] = {}
    for name, tensor in first.items():
        total = np.zeros(tensor.shape)
        for atom, weight in weights.items():
            part = vectors[atom].get(name)
            if part is None or part.shape != tensor.shape:
                raise BundleError(f"{layout.vector(atom)} has other tensors than the other vectors")
            total += weight * part.astype(np.float64)
        found[name] = total.astype(np.float32)
    return found


class Powers:
    """The curvature of a bundle, for taking vectors from one power to another."""

    def __init__(self, path: Path) -> None:
        """Read `curvature/curvature.safetensors`; raises `BundleError` when it is damaged."""
        try:
            self._tensors = read_tensors(path, integers=True)
            facts = read_metadata(path).get("atomscope", "")
            self._facts = msgspec.json.decode(facts, type=_Facts)
        except (SteeringError, msgspec.MsgspecError) as error:
            raise BundleError(f"{layout.CURVATURE} is damaged: {error}") from error

    def change(self, vector: Vector, old: VectorPower, new: VectorPower) -> dict[str, NDArray[np.float32]]:
        """The vector in the power `new`, float32; arithmetic in float64.

        Raises `BundleError` when the curvature is not that of the vector.
        """
        exponent = _EXPONENTS[new] - _EXPONENTS[old]
        return {name: self._changed(name, tensor, exponent) for name, tensor in vector.items()}

    def _changed(self, name: str, tensor: NDArray[Any], exponent: float) -> NDArray[np.float32]:
        try:
            outputs = self._tensors[f"outputs/{name}/vectors"].astype(np.float64)
            inputs = self._tensors[f"inputs/{self._facts.groups[name]}/vectors"].astype(np.float64)
            curvature = self._tensors[f"lambda/{name}"] + self._facts.damping[name]
            chosen = self._tensors[f"chosen/{name}"]
            scale = np.zeros(curvature.shape)
            # A module without energy has no lambda to divide by, and nothing to move.
            np.power(curvature, exponent, out=scale, where=curvature > 0)
            if len(chosen):
                kept = np.zeros(scale.shape, dtype=np.bool_)
                kept[chosen[:, 0], chosen[:, 1]] = True
                scale = np.where(kept, scale, 0.0)
            changed = outputs @ ((outputs.T @ tensor.astype(np.float64) @ inputs) * scale) @ inputs.T
        except (KeyError, ValueError, IndexError) as error:
            raise BundleError(f"{layout.CURVATURE} is not that of the vectors: {error}") from error
        return changed.astype(np.float32)
