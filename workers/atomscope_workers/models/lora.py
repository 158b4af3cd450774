"""A model with its LoRA attached, every LoRA parameter known by its name in the adapter's file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoraParameter:
    """One LoRA matrix: what METHOD calls a module."""

    name: str
    """Its key in `adapter_model.safetensors`, such as `...q_proj.lora_A.weight`."""
    linear: torch.nn.Linear
    """The submodule that holds it; its weight has the shape of the file's tensor, (d_out, d_in)."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.linear.out_features, self.linear.in_features


@dataclass(frozen=True)
class LoraModel:
    """Base and adapter, in eval mode, no parameter requiring a gradient."""

    model: torch.nn.Module
    """The PEFT model; `model.get_base_model()` is the transformers model with LoRA layers in place."""
    base: PreTrainedModel
    """That transformers model."""
    parameters: tuple[LoraParameter, ...]
    """Sorted by name."""
    device: torch.device
    dtype: torch.dtype
    """Compute dtype of base and adapter."""
    offloaded: bool = False
    """Whether layers of the base lie elsewhere than on `device`, and come over when they run."""

    @property
    def n_parameters(self) -> int:
        """d: all LoRA parameters."""
        return sum(out * inner for out, inner in (item.shape for item in self.parameters))
