"""Base and adapter put together, every LoRA tensor matched by its name and checked after loading."""

from __future__ import annotations

import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from atomscope.steering.scaling import rank_and_alpha
from atomscope_workers.models.adapter import WEIGHTS, CheckedAdapter, check_adapter
from atomscope_workers.models.base import CheckedBase, build_meta_base, check_base, load_base
from atomscope_workers.models.copies import check_copied_shapes, check_copied_values
from atomscope_workers.models.lora import LoraModel, LoraParameter
from atomscope_workers.models.places import find_places, mismatch, raise_mismatch

_ADAPTER = "default"


def load_lora_model(
    base_dir: Path, adapter_dir: Path, *, dtype: torch.dtype, device: torch.device
) -> LoraModel:
    """Check both folders, then load base and adapter in `dtype` on `device`.

    The model is in eval mode and no parameter requires a gradient. Raises `InvalidInput` as `check_base`,
    `check_adapter` and `check_fit` do.
    """
    parts = checked_parts(base_dir, adapter_dir, dtype=dtype, device=device)
    return parts.attach(parts.load_base())


@dataclass(frozen=True)
class CheckedParts:
    """A base and an adapter that fits it, neither of them loaded."""

    base: CheckedBase
    adapter: CheckedAdapter
    dtype: torch.dtype
    device: torch.device

    def load_base(self) -> PreTrainedModel:
        return load_base(self.base, dtype=self.dtype, device=self.device)

    def attach(self, base: PreTrainedModel) -> LoraModel:
        """Raises `InvalidInput` as `attach_adapter` does."""
        return attach_adapter(base, self.adapter, dtype=self.dtype, device=self.device)


def checked_parts(
    base_dir: Path, adapter_dir: Path, *, dtype: torch.dtype, device: torch.device
) -> CheckedParts:
    """Check both folders; raises `InvalidInput` as `check_base`, `check_adapter` and `check_fit` do."""
    base = check_base(base_dir)
    adapter = check_adapter(adapter_dir)
    check_fit(base, adapter)
    return CheckedParts(base, adapter, dtype, device)


def check_fit(base: CheckedBase, adapter: CheckedAdapter) -> None:
    """Compare the adapter's names and shapes with the base's architecture, without its weights.

    Raises `InvalidInput`: `adapter_base_mismatch` with the first names and the shapes expected and found,
    `unsupported_adapter` for a LoRA on a layer that is not linear, for a name that could mean two layers, and
    for trained or resized embeddings, `invalid_config` where `fan_in_fan_out` contradicts the layers.
    """
    model = build_meta_base(base)
    places = find_places(model, adapter)
    check_copied_shapes(model, adapter)
    _check_shapes(_lora_parameters(_inject(model, adapter, places), adapter, places), adapter)


def attach_adapter(
    base: PreTrainedModel, adapter: CheckedAdapter, *, dtype: torch.dtype, device: torch.device
) -> LoraModel:
    """Put a checked adapter on a loaded base; every value is compared with the file afterwards.

    Raises `InvalidInput` as `check_fit` does, and where a copy of the base's embeddings in the file differs.
    """
    places = find_places(base, adapter)
    check_copied_values(base, adapter)
    model = _inject(base, adapter, places)
    parameters = _lora_parameters(model, adapter, places)
    _check_shapes(parameters, adapter)
    with safe_open(adapter.folder / WEIGHTS, framework="pt") as stream:
        for name, parameter in parameters.items():
            parameter.linear.weight = torch.nn.Parameter(
                stream.get_tensor(name).to(device=device, dtype=dtype), requires_grad=False
            )
        model.eval()
        model.requires_grad_(False)
        for name, parameter in _lora_parameters(model, adapter, places).items():
            held = stream.get_tensor(name).to(device=device, dtype=dtype)
            if not torch.equal(parameter.linear.weight, held):
                raise RuntimeError(f"{name} differs from its file after loading")
    return LoraModel(
        model=model,
        base=base,
        parameters=tuple(parameters[name] for name in sorted(parameters)),
        device=device,
        dtype=dtype,
        # accelerate notes it on a base that it placed
        offloaded=bool({"cpu", "disk"} & {*getattr(base, "hf_device_map", {}).values()}),
    )


def detach_adapter(lora_model: LoraModel) -> PreTrainedModel:
    """The base as it was before its adapter was attached, to the bit; `lora_model` is of no use afterwards.

    Not of a base that lies elsewhere than on its device: what brings its layers over hangs on them.
    """
    model: Any = lora_model.model
    base: PreTrainedModel = model.unload()
    if any(isinstance(module, LoraLayer) for module in base.modules()):
        raise RuntimeError("PEFT left layers of the adapter on the base")
    return base


@contextmanager
def adapter_disabled(lora_model: LoraModel) -> Generator[None]:
    """Within it the model is the base alone, LoRA matrices not run; afterwards the adapter is back."""
    layers = [module for module in lora_model.base.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)
        # enabling marks the matrices as trainable
        lora_model.model.requires_grad_(False)


def _inject(base: PreTrainedModel, adapter: CheckedAdapter, places: dict[str, str]) -> PeftModel:
    """`base` with LoRA layers, values unset, on exactly the layers of `places`."""
    layers = dict(base.named_modules())
    rank, alpha = adapter.config["r"], adapter.config["lora_alpha"]
    own = {place: rank_and_alpha(adapter.config, module) for module, place in places.items()}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        inference_mode=True,
        r=rank,
        lora_alpha=alpha,
        # By the whole path in this base, whatever the adapter called the layer.
        rank_pattern={re.escape(place): value for place, (value, _) in own.items() if value != rank},
        alpha_pattern={re.escape(place): value for place, (_, value) in own.items() if value != alpha},
        use_rslora=bool(adapter.config.get("use_rslora")),
        fan_in_fan_out=any(isinstance(layers[place], Conv1D) for place in places.values()),
        lora_dropout=0.0,
        target_modules=sorted(places.values()),
    )
    with warnings.catch_warnings():
        # These concern merging, which is never done here; PEFT sets the first by layer, whatever is given.
        for message in ("fan_in_fan_out is set to", "Model (has|with) `tie_word_embeddings=True`"):
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        # PEFT reads it on every model that it wraps.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return PeftModel(
            base, config, adapter_name=_ADAPTER, autocast_adapter_dtype=False, low_cpu_mem_usage=True
        )


def _lora_parameters(
    model: PeftModel, adapter: CheckedAdapter, places: dict[str, str]
) -> dict[str, LoraParameter]:
    """The LoRA matrices of a PEFT model by their names in the adapter's file.

    Raises `RuntimeError` where PEFT put a LoRA elsewhere than on the layers of `places`.
    """
    layers = {
        name: module
        for name, module in model.get_base_model().named_modules()
        if isinstance(module, LoraLayer)
    }
    if layers.keys() != set(places.values()):
        raise RuntimeError("PEFT adapted other layers than the adapter names")
    found: dict[str, LoraParameter] = {}
    for name, said in adapter.names.items():
        linear = getattr(layers[places[said.module]], f"lora_{said.side}")[_ADAPTER]
        found[name] = LoraParameter(name=name, linear=linear)
    return found


def _check_shapes(parameters: dict[str, LoraParameter], adapter: CheckedAdapter) -> None:
    raise_mismatch(
        [
            mismatch(name, str(list(parameters[name].shape)), str(list(info.shape)))
            for name, info in adapter.tensors.items()
            if parameters[name].shape != info.shape
        ]
    )
