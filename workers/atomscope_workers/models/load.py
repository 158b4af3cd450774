"""Base and adapter put together, every LoRA tensor matched by its name and checked after loading."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import PreTrainedModel

from atomscope.errors import InputProblem, InvalidInput
from atomscope_workers.models.adapter import PREFIX, WEIGHTS, CheckedAdapter, check_adapter
from atomscope_workers.models.base import CheckedBase, build_meta_base, check_base, load_base
from atomscope_workers.models.lora import LoraModel, LoraParameter

_ADAPTER = "default"
_MAX_LISTED = 10


def load_lora_model(
    base_dir: Path, adapter_dir: Path, *, dtype: torch.dtype, device: torch.device
) -> LoraModel:
    """Check both folders, then load base and adapter in `dtype` on `device`.

    The model is in eval mode and no parameter requires a gradient. Raises `InvalidInput` as `check_base`,
    `check_adapter` and `check_fit` do.
    """
    base = check_base(base_dir)
    adapter = check_adapter(adapter_dir)
    check_fit(base, adapter)
    return attach_adapter(load_base(base, dtype=dtype, device=device), adapter, dtype=dtype, device=device)


def check_fit(base: CheckedBase, adapter: CheckedAdapter) -> None:
    """Compare the adapter's names and shapes with the base's architecture, without its weights.

    Raises `InvalidInput`: `adapter_base_mismatch` with the first names and the shapes expected and found, or
    `unsupported_adapter` for a LoRA on a layer that is not a `torch.nn.Linear`.
    """
    model = build_meta_base(base)
    _check_layers(model, adapter)
    _check_targets_complete(model, adapter)
    expected = {name: item.shape for name, item in _lora_parameters(_inject(model, adapter)).items()}
    problems = [
        _mismatch(name, str(list(expected[name])), str(list(info.shape)))
        for name, info in adapter.tensors.items()
        if expected[name] != info.shape
    ]
    _raise_mismatch(problems)


def attach_adapter(
    base: PreTrainedModel, adapter: CheckedAdapter, *, dtype: torch.dtype, device: torch.device
) -> LoraModel:
    """Put a checked adapter on a loaded base; every value is compared with the file afterwards.

    Raises `InvalidInput` (`adapter_base_mismatch`) where names or shapes differ.
    """
    _check_layers(base, adapter)
    model = _inject(base, adapter)
    parameters = _lora_parameters(model)
    tensors = load_file(adapter.folder / WEIGHTS)
    _raise_mismatch(
        [
            _mismatch(
                name,
                _shape_text(parameters.get(name)),
                str(list(tensors[name].shape)) if name in tensors else "nothing",
            )
            for name in sorted(parameters.keys() | tensors.keys())
            if name not in tensors
            or name not in parameters
            or parameters[name].shape != tuple(tensors[name].shape)
        ]
    )
    for name, parameter in parameters.items():
        parameter.linear.weight = torch.nn.Parameter(
            tensors[name].to(device=device, dtype=dtype), requires_grad=False
        )
    model.eval()
    model.requires_grad_(False)
    for name, parameter in _lora_parameters(model).items():
        if not torch.equal(parameter.linear.weight, tensors[name].to(device=device, dtype=dtype)):
            raise RuntimeError(f"{name} differs from its file after loading")
    return LoraModel(
        model=model,
        base=base,
        parameters=tuple(parameters[name] for name in sorted(parameters)),
        device=device,
        dtype=dtype,
    )


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


def _inject(base: PreTrainedModel, adapter: CheckedAdapter) -> PeftModel:
    """`base` with LoRA layers, values unset, on exactly the layers that the file names."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        inference_mode=True,
        r=adapter.config["r"],
        lora_alpha=adapter.config["lora_alpha"],
        rank_pattern=adapter.config.get("rank_pattern") or {},
        alpha_pattern=adapter.config.get("alpha_pattern") or {},
        use_rslora=bool(adapter.config.get("use_rslora")),
        lora_dropout=0.0,
        target_modules=adapter.modules,
    )
    return PeftModel(
        base, config, adapter_name=_ADAPTER, autocast_adapter_dtype=False, low_cpu_mem_usage=True
    )


def _lora_parameters(model: PeftModel) -> dict[str, LoraParameter]:
    """The LoRA matrices of a PEFT model by the names that they have in an adapter's file."""
    found: dict[str, LoraParameter] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            for side in ("lora_A", "lora_B"):
                linear = getattr(module, side)[_ADAPTER]
                key = f"{name}.{side}.weight"
                found[key] = LoraParameter(name=key, linear=linear)
    return found


def _check_layers(model: torch.nn.Module, adapter: CheckedAdapter) -> None:
    layers = dict(model.named_modules())
    missing = [name for name in adapter.tensors if _layer_of(name) not in layers]
    _raise_mismatch(
        [_mismatch(name, "no such layer", str(list(adapter.tensors[name].shape))) for name in missing]
    )
    for name in adapter.tensors:
        layer = layers[_layer_of(name)]
        if type(layer) is not torch.nn.Linear:
            raise InvalidInput(
                "unsupported_adapter",
                f"LoRA on {type(layer).__name__} layers is not supported; on torch.nn.Linear layers it is",
                [InputProblem(message=f"a LoRA on a {type(layer).__name__}", file=WEIGHTS, field=name)],
            )


def _check_targets_complete(model: torch.nn.Module, adapter: CheckedAdapter) -> None:
    """A list of target names must be met in full; patterns and layer selections leave it to the file."""
    targets = adapter.config["target_modules"]
    selected = any(
        adapter.config.get(field) is not None for field in ("layers_to_transform", "exclude_modules")
    )
    if not isinstance(targets, list) or selected:
        return
    present = set(adapter.modules)
    suffixes = tuple(f".{target}" for target in targets)
    wanted = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and (name in targets or name.endswith(suffixes))
    ]
    _raise_mismatch(
        [
            _mismatch(f"{PREFIX}{name}.lora_A.weight", "a tensor, as target_modules says", "nothing")
            for name in wanted
            if name not in present
        ]
    )


def _layer_of(name: str) -> str:
    return name.removeprefix(PREFIX).rsplit(".lora_", 1)[0]


def _shape_text(parameter: LoraParameter | None) -> str:
    return "no such layer" if parameter is None else str(list(parameter.shape))


def _mismatch(name: str, expected: str, found: str) -> InputProblem:
    return InputProblem(message=f"expected {expected}, found {found}", file=WEIGHTS, field=name)


def _raise_mismatch(problems: list[InputProblem]) -> None:
    if problems:
        first = problems[0]
        raise InvalidInput(
            "adapter_base_mismatch",
            f"the adapter does not fit the base model: {len(problems)} tensors differ, "
            f"first {first.field}: {first.message}",
            problems[:_MAX_LISTED],
        )
