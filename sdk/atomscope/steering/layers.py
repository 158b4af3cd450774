"""An adapter layer by layer: the two matrices of each, and what their product is multiplied by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomscope.errors import SteeringError
from atomscope.steering.apply import Step, check_finite
from atomscope.steering.names import LoraName, parse_lora_name
from atomscope.steering.scaling import scaling
from atomscope.text import visible


@dataclass(frozen=True)
class Layer:
    """One adapted layer, its matrices by their names in the adapter's file."""

    module: str
    """Its path within the model that was trained."""
    names: dict[str, str]
    """`A` and `B` -> name of the tensor."""
    a: NDArray[Any]
    """(r, d_in)."""
    b: NDArray[Any]
    """(d_out, r)."""
    scale: float
    """The layer computes (W + scale B A) x."""

    def step(self, step: Step) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """dA and dB."""
        return step.of(self.names["A"], self.a.shape), step.of(self.names["B"], self.b.shape)


@dataclass(frozen=True)
class Pair:
    """Two matrices of which the product alone, times nothing, is added to a layer's weight."""

    a: NDArray[np.float32]
    """(rank, d_in)."""
    b: NDArray[np.float32]
    """(d_out, rank)."""

    @property
    def rank(self) -> int:
        return len(self.a)


def lora_layers(lora: Mapping[str, NDArray[Any]], config: Mapping[str, Any]) -> list[Layer]:
    """The layers of an adapter, sorted by path.

    Raises `SteeringError` where a matrix is missing, is there twice, or does not fit the other one, and where
    `config` does not say its scale.
    """
    found: dict[str, dict[str, str]] = {}
    for name in lora:
        said = parse_lora_name(name)
        if said is None or said.side in found.setdefault(said.module, {}):
            raise SteeringError(f"{visible(name)} is no tensor of a plain LoRA, or is there twice")
        found[said.module][said.side] = name
    layers: list[Layer] = []
    for module, names in sorted(found.items()):
        if len(names) != len("AB"):
            raise SteeringError(f"a matrix of {visible(module)} is missing from the adapter")
        a, b = lora[names["A"]], lora[names["B"]]
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
            raise SteeringError(f"the matrices of {visible(module)} do not fit each other")
        layers.append(Layer(module, names, a, b, scaling(config, module, len(a))))
    return layers


def steered_pair(layer: Layer, step: Step) -> Pair:
    """A + dA and scale (B + dB), of the same rank."""
    d_a, d_b = layer.step(step)
    return rounded(
        layer.module, layer.a.astype(np.float64) + d_a, layer.scale * (layer.b.astype(np.float64) + d_b)
    )


def rounded(module: str, a: NDArray[np.float64], b: NDArray[np.float64]) -> Pair:
    """The pair in float32; raises `SteeringError` where that cannot hold it."""
    with np.errstate(over="ignore", invalid="ignore"):
        pair = Pair(a.astype(np.float32), b.astype(np.float32))
    check_finite(LoraName(module, "A").peft_name, pair.a)
    check_finite(LoraName(module, "B").peft_name, pair.b)
    return pair


def by_peft_name(pairs: Mapping[str, Pair]) -> dict[str, NDArray[np.float32]]:
    """Tensors of pairs by layer, under the names that PEFT loads."""
    return {
        LoraName(module, side).peft_name: tensor
        for module, pair in pairs.items()
        for side, tensor in (("A", pair.a), ("B", pair.b))
    }
