"""Loaded models that a worker keeps from one unit to the next, the ones used last, by what they take."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable

import torch

from atomscope_workers.models.device_memory import free_bytes
from atomscope_workers.models.lora import LoraModel

OTHERS = 0.2
"""Share of a device, beside the model in use, that others may hold; a found token budget leaves as much."""

Key = tuple[str, ...]


class KeptModels:
    """Models by key. One thread at a time."""

    def __init__(self) -> None:
        self._models: OrderedDict[Key, LoraModel] = OrderedDict()

    def __contains__(self, key: Key) -> bool:
        return key in self._models

    def __len__(self) -> int:
        return len(self._models)

    def get(self, key: Key, load: Callable[[], LoraModel], *, size: int, device: torch.device) -> LoraModel:
        """The model of `key`, loaded by `load` unless it is kept; `size` are the bytes that it will take.

        Others go first where they would not leave the new one its room. What `load` raises is raised, and
        nothing is kept of it.
        """
        if key not in self._models:
            self.make_room(size, device)
            self._models[key] = load()
        self._models.move_to_end(key)
        return self._models[key]

    def make_room(self, size: int, device: torch.device) -> None:
        """Let go of what was used longest ago, until the rest may stay beside a new model of `size` bytes."""
        while self._models:
            others = sum(map(held_bytes, self._models.values()))
            if others <= OTHERS * (free_bytes(device) + others - size):
                return
            self._models.popitem(last=False)
            _give_back(device)

    def clear(self) -> None:
        self._models.clear()


def held_bytes(lora: LoraModel) -> int:
    """Bytes of a model's weights on its device; what lies elsewhere is not counted."""
    return sum(
        item.numel() * item.element_size()
        for item in lora.model.parameters()
        if item.device.type == lora.device.type
    )


def _give_back(device: torch.device) -> None:
    """Memory of a model that is no longer referred to; modules and their hooks refer to each other."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
