"""Loaded models that a worker keeps from one unit to the next, the ones used last, by what they take.

A base is kept with the adapter that was audited on it last: another adapter of the same base takes that one's
place, and the base is not loaded again.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from atomscope_workers.models.device_memory import free_bytes
from atomscope_workers.models.load import detach_adapter
from atomscope_workers.models.lora import LoraModel

OTHERS = 0.2
"""Share of a device, beside the model in use, that others may hold; a found token budget leaves as much."""

Key = tuple[str, ...]


class Parts(Protocol):
    """A base and an adapter that were checked and are not loaded."""

    def load_base(self) -> PreTrainedModel: ...

    def attach(self, base: PreTrainedModel) -> LoraModel:
        """The adapter on a base that has none."""
        ...


@dataclass(frozen=True)
class _Kept:
    adapter: str
    model: LoraModel


class KeptModels:
    """Models by the key of their base. One thread at a time."""

    def __init__(self) -> None:
        self._models: OrderedDict[Key, _Kept] = OrderedDict()

    def __contains__(self, key: Key) -> bool:
        return key in self._models

    def __len__(self) -> int:
        return len(self._models)

    def get(
        self,
        key: Key,
        adapter: str,
        parts: Callable[[], Parts],
        *,
        size: int,
        device: torch.device,
    ) -> LoraModel:
        """The model of a base's `key` with an `adapter`, made of `parts` as far as it is not kept.

        A model that was given before for another adapter of this base is of no use afterwards. `size` are the
        bytes that the base will take: others go first where they would not leave it its room. What `parts`
        raises is raised before anything goes; of what fails to load nothing is kept.
        """
        if key in self._models and self._models[key].adapter == adapter:
            self._models.move_to_end(key)
            return self._models[key].model
        found = parts()
        base = self._free_base(key, device)
        if base is None:
            self.make_room(size, device)
            base = found.load_base()
        model = found.attach(base)
        self._models[key] = _Kept(adapter, model)
        return model

    def _free_base(self, key: Key, device: torch.device) -> PreTrainedModel | None:
        """The kept base of `key` without its adapter, kept no longer; None where it must be loaded."""
        if key not in self._models:
            return None
        model = self._models.pop(key).model
        if not model.offloaded:
            return detach_adapter(model)
        del model
        _give_back(device)
        return None

    def holds(self, key: Key, device: torch.device) -> bool:
        """Whether a base is kept; what its earlier passes left behind on `device` is given back then."""
        if key not in self._models:
            return False
        _give_back(device)
        return True

    def make_room(self, size: int, device: torch.device) -> None:
        """Let go of what was used longest ago, until the rest may stay beside a new model of `size` bytes."""
        while self._models:
            others = sum(held_bytes(kept.model) for kept in self._models.values())
            if others <= OTHERS * (free_bytes(device) + others - size):
                return
            self._models.popitem(last=False)
            _give_back(device)

    def clear(self) -> None:
        """Let go of all; what a device held of them can be given back then."""
        self._models.clear()
        gc.collect()


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
