"""A model with behaviours turned up or down for a while, in this process.

    from peft import PeftModel
    import atomscope
    from atomscope_workers.steered import steered

    model = PeftModel.from_pretrained(base, "adapter/")
    with steered(model, atomscope.open("bundle/"), {"behaviour:3": -0.1}):
        model.generate(...)
    # here every bit of the weights is what it was

The adapter's own matrices are moved, A + dA and B + dB, as in a saved adapter of the same rank. Contexts
nest, and their steps add up. One thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from atomscope.bundle import Bundle, Strengths, directions, layout, strengths_by_target
from atomscope.errors import SteeringError
from atomscope.steering import plan_step
from atomscope.steering.adapter import AdapterFolder, read_adapter
from atomscope.steering.names import parse_lora_name, peft_name
from atomscope.text import counted, visible
from atomscope.types.spec import VectorPower
from atomscope.types.steering import Unit
from atomscope_workers.models.lora import LoraModel

StepOf = Callable[[str, tuple[int, ...]], NDArray[np.float64]]
"""From a parameter's name and shape to what is added to it."""

_SHOWN = 3
_depth: WeakKeyDictionary[torch.nn.Module, int] = WeakKeyDictionary()
"""How many contexts a model is in."""


@contextmanager
def steered(
    model: PeftModel | LoraModel,
    bundle: Bundle,
    strengths: Strengths,
    *,
    unit: Unit = "norm",
    power: VectorPower | None = None,
    adapter_name: str | None = None,
) -> Generator[None]:
    """Within it, the audited adapter on `model` is steered; afterwards its weights have the bits they had.

    So they do whatever is raised. Strengths, unit and power are those of `Bundle.steer`. Sums are float64,
    cast to the weights' dtype last, as in a saved adapter. `adapter_name` is that under which PEFT knows the
    audited adapter, by default the active one. Memory: a copy of the LoRA weights.

    Raises `SteeringError`, with nothing moved: as `Bundle.steer` does; where the model holds another adapter
    than the audited one, holds it merged or switched off, or several are active and none is named; and where
    a weight's dtype cannot hold the result.
    """
    targets = strengths_by_target(strengths)
    vectors = directions(bundle, targets, power)
    bundle.file(layout.ADAPTER_WEIGHTS)
    adapter = read_adapter(bundle.file(layout.ADAPTER_CONFIG).parent)
    step = plan_step(adapter.lora, vectors, targets, unit)
    module = model.model if isinstance(model, LoraModel) else model
    weights = _weights_of(model, adapter_name)
    _check_match(weights, adapter, own_values=_depth.get(module, 0) == 0)
    with moved_weights({name: weights[peft_name(name)] for name in adapter.lora}, step.of):
        _depth[module] = _depth.get(module, 0) + 1
        try:
            yield
        finally:
            _depth[module] -= 1


@contextmanager
def moved_weights(weights: Mapping[str, torch.Tensor], step: StepOf) -> Generator[None]:
    """Within it each weight is its sum with a step, float64, cast last; afterwards its own bits.

    So it is whatever is raised. Memory: a copy of the weights, and one float64 tensor at a time. Raises
    `SteeringError`, with nothing moved, where a dtype cannot hold the result.
    """
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                move = torch.from_numpy(step(name, tuple(weight.shape)))
                weight.copy_((weight.cpu().double() + move).to(weight.dtype))
                if not bool(torch.isfinite(weight).all()):
                    raise SteeringError(
                        f"a steered weight does not fit {weight.dtype}: use a smaller strength"
                    )
        yield
    finally:
        with torch.no_grad():
            for name, own in before.items():
                weights[name].copy_(own)


def _weights_of(model: PeftModel | LoraModel, adapter_name: str | None) -> dict[str, torch.Tensor]:
    """The LoRA matrices of the adapter by the names under which PEFT saves them."""
    module = model.base if isinstance(model, LoraModel) else model
    if isinstance(model, LoraModel):
        found: dict[str, torch.Tensor] = {
            peft_name(item.name): item.linear.weight for item in model.parameters
        }
        name = "default"
    else:
        name = adapter_name if adapter_name is not None else _active(model)
        found = {
            said.peft_name: weight
            for path, weight in model.named_parameters()
            if (said := parse_lora_name(path)) is not None and said.adapter == name
        }
    if not found:
        raise SteeringError(f"the model holds no LoRA by the name {visible(name)!r}")
    for layer in module.modules():
        if isinstance(layer, LoraLayer) and name in layer.lora_A:
            if layer.merged:
                raise SteeringError("the adapter is merged into the base's weights: unmerge it first")
            if layer.disable_adapters or name not in layer.active_adapters:
                raise SteeringError(
                    f"the adapter {visible(name)!r} is not active: steering it would do nothing"
                )
    return found


def _active(model: PeftModel) -> str:
    active = list(model.active_adapters)
    if len(active) != 1:
        told = ", ".join(visible(name) for name in active)
        raise SteeringError(f"several adapters are active ({told}): name the audited one by adapter_name")
    return active[0]


def _check_match(weights: Mapping[str, torch.Tensor], adapter: AdapterFolder, *, own_values: bool) -> None:
    """Raise `SteeringError` unless the weights are those of the audited adapter, by name, shape and value."""
    audited = {peft_name(name): tensor for name, tensor in adapter.lora.items()}
    differ = sorted(audited.keys() ^ weights.keys())
    differ += [name for name in audited if name in weights and audited[name].shape != weights[name].shape]
    if not differ and own_values:
        differ = [name for name, tensor in audited.items() if not _equal(weights[name], tensor)]
    if differ:
        told = visible(", ".join(differ[:_SHOWN]))
        raise SteeringError(
            "the model's adapter is not the audited one: "
            f"{counted(len(differ), 'tensor differs', 'tensors differ')}, such as {told}"
        )


def _equal(weight: torch.Tensor, audited: NDArray[np.generic]) -> bool:
    held = torch.from_numpy(audited.astype(np.float64)).to(dtype=weight.dtype)
    return torch.equal(weight.detach().cpu(), held)
