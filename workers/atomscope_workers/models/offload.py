"""A base larger than its device: which layers lie elsewhere, and come over for as long as they run.

transformers and accelerate do the moving: a layer's weights are copied to the device before its forward
pass and let go of after it. A backward pass would hold those of all layers, so that it goes with
recomputation (`pipeline.recompute`), which holds one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

FITS = 0.7
"""Share of what is free that a base may take and leave room for its passes; a larger one is split."""
HELD = 0.5
"""Share of what is free that a split base holds there."""


@dataclass(frozen=True)
class Placement:
    """Where the weights of a base lie."""

    places: dict[str, str | int]
    """Path of a module -> device of what is below it, as `device_map` of transformers."""
    held: int
    """Bytes that stay on the device."""
    total: int
    """Bytes of the whole base."""


def decoder_layers(model: torch.nn.Module) -> dict[str, GradientCheckpointingLayer]:
    """The model's layers by path, in order: what is recomputed, and what is moved, as one."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, GradientCheckpointingLayer)
    }


def weight_bytes(model: torch.nn.Module, dtype: torch.dtype) -> int:
    """Bytes of a module's weights and buffers in `dtype`, those that are shared once; may be on `meta`."""
    return sum(item.numel() for item in {*model.parameters(), *model.buffers()}) * dtype.itemsize


def placement(
    model: PreTrainedModel, dtype: torch.dtype, device: torch.device, *, free: int, free_host: int
) -> Placement | None:
    """Where to put the weights of `model`, which may be on `meta`; None where all of it fits the device.

    `free` and `free_host` are bytes of the device and of the host. What is outside the layers stays on the
    device, and of the layers the first ones that fit; the others lie in the host's memory, and what does not
    fit there, or has a CPU for its device, on disk, where the base's own files are read.
    """
    total = weight_bytes(model, dtype)
    if total <= FITS * free:
        return None
    layers = decoder_layers(model)
    sizes = {path: weight_bytes(layer, dtype) for path, layer in layers.items()}
    held = total - sum(sizes.values())
    here: str | int = "cpu" if device.type == "cpu" else device.index or 0
    places: dict[str, str | int] = dict.fromkeys(_outside(model, set(layers)), here)
    # One layer of the others is on the device while it runs.
    room = HELD * free - held - max(sizes.values(), default=0)
    room_on_host = 0 if device.type == "cpu" else HELD * free_host
    for path, size in sizes.items():
        if size <= room:
            places[path] = here
            room -= size
            held += size
        elif size <= room_on_host:
            room = 0
            places[path] = "cpu"
            room_on_host -= size
        else:
            room = room_on_host = 0
            places[path] = "disk"
    return Placement(places, held + max(sizes.values(), default=0), total)


def least_bytes(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """Bytes that a base holds on its device when every layer lies elsewhere, the running one included."""
    sizes = [weight_bytes(layer, dtype) for layer in decoder_layers(model).values()]
    return weight_bytes(model, dtype) - sum(sizes) + max(sizes, default=0)


def _outside(model: torch.nn.Module, layers: set[str], path: str = "") -> Iterator[str]:
    """Paths of the largest modules that hold no layer."""
    if path in layers:
        return
    if path and not any(layer.startswith(f"{path}.") for layer in layers):
        yield path
        return
    for name, child in model.named_children():
        yield from _outside(child, layers, f"{path}.{name}" if path else name)
