"""Copies of the base's own weights in an adapter's file: let be where they are that, refused otherwise.

PEFT saves the output head and the embeddings along with a LoRA on the head, and with any LoRA when the
vocabulary was resized. A copy that equals the base's weights changes nothing; one that differs was trained.
"""

from __future__ import annotations

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from atomscope.errors import InvalidInput
from atomscope_workers.models.adapter import WEIGHTS, CheckedAdapter
from atomscope_workers.models.folder import refuse
from atomscope_workers.models.places import base_layer_of


def check_copied_shapes(model: PreTrainedModel, adapter: CheckedAdapter) -> None:
    """Compare the shape of every copy with the base's; raises `InvalidInput` (`unsupported_adapter`)."""
    with safe_open(adapter.folder / WEIGHTS, framework="pt") as stream:
        for name, path in adapter.copies.items():
            shape = tuple(stream.get_slice(name).get_shape())
            if shape != tuple(_weight(model, path, name).shape):
                raise _trained(name, "of another shape than")


def check_copied_values(model: PreTrainedModel, adapter: CheckedAdapter) -> None:
    """Compare the values of every copy with the base's; raises `InvalidInput` (`unsupported_adapter`).

    Either may be the other rounded: an adapter is often saved in another dtype than its base is loaded in.
    """
    with safe_open(adapter.folder / WEIGHTS, framework="pt") as stream:
        for name, path in adapter.copies.items():
            own = _weight(model, path, name).detach()
            copy = stream.get_tensor(name).to(own.device)
            same = copy.shape == own.shape and (
                torch.equal(copy.to(own.dtype), own) or torch.equal(own.to(copy.dtype), copy)
            )
            if not same:
                raise _trained(name, "not the same as")


def _weight(model: PreTrainedModel, path: str, name: str) -> torch.Tensor:
    weight = getattr(base_layer_of(path, model), "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise _trained(name, "not among")
    return weight


def _trained(name: str, how: str) -> InvalidInput:
    return refuse(
        "unsupported_adapter",
        f"it is {how} the base's weights: trained embeddings are not supported. Where they were resized and "
        "not trained, give the base with these embeddings",
        file=WEIGHTS,
        field=name,
    )
