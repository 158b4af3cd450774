"""Where in the base model each LoRA of an adapter belongs: exactly one layer, or a refusal by name.

An adapter names layers as the model did that it was trained on. That may have been the base within a
multimodal model (`model.language_model.layers...`), the base without its output head (`layers...`), or an
earlier transformers' (GPT-NeoX's head was `embed_out`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from atomscope.errors import InputProblem, InvalidInput
from atomscope.text import counted
from atomscope_workers.models.adapter import WEIGHTS, CheckedAdapter
from atomscope_workers.models.folder import refuse
from atomscope_workers.models.settings import CONFIG, unsupported

LINEAR = (torch.nn.Linear, Conv1D)
"""Layers that may carry a LoRA; no subclass, which might compute something else."""

_TEXT = "language_model"
"""What multimodal models of transformers call the text model inside them."""

_RENAMED = {"gpt_neox": {"embed_out": "lm_head", "lm_head": "embed_out"}}
"""By `model_type`: layers that transformers has called otherwise."""

_MAX_LISTED = 10


def find_places(model: PreTrainedModel, adapter: CheckedAdapter) -> dict[str, str]:
    """Path of each adapted layer in the adapter -> its path in `model`, a base without LoRA.

    Raises `InvalidInput`: `adapter_base_mismatch` where a layer is not there or a target has no LoRA,
    `unsupported_adapter` where a layer is not linear, or where a path could mean two layers.
    """
    layers = dict(model.named_modules())
    places: dict[str, str] = {}
    taken: dict[str, str] = {}
    missing: list[InputProblem] = []
    for name, found in adapter.names.items():
        fits = [path for path in _readings(found.module, model) if path in layers]
        if not fits:
            missing.append(mismatch(name, "no such layer", str(list(adapter.tensors[name].shape))))
            continue
        other = taken.setdefault(fits[0], found.module)
        if len(fits) > 1 or other != found.module:
            told = " or ".join(fits) if len(fits) > 1 else f"{fits[0]}, as {other} does"
            raise unsupported(f"a tensor that could mean {told}", name, WEIGHTS)
        places[found.module] = fits[0]
    raise_mismatch(missing)
    for name, found in adapter.names.items():
        _check_linear(layers[places[found.module]], name)
    _check_targets_complete(layers, adapter, set(places.values()))
    _check_transposed(layers, adapter, places)
    return places


def base_layer_of(path: str, model: PreTrainedModel) -> torch.nn.Module | None:
    """The layer of `model` that an adapter calls `path`; None where there is none, or more than one."""
    layers = dict(model.named_modules())
    fits = [reading for reading in _readings(path, model) if reading in layers]
    return layers[fits[0]] if len(fits) == 1 else None


def _readings(path: str, model: PreTrainedModel) -> list[str]:
    """What `path` may mean in `model`, as written first, each once."""
    segments = path.split(".")
    written = [path]
    if segments.count(_TEXT) == 1:
        written.append(".".join(segment for segment in segments if segment != _TEXT))
    headless = [f"{model.base_model_prefix}.{item}" for item in written]
    renamed = _RENAMED.get(str(model.config.model_type), {})
    other = [renamed[item] for item in written if item in renamed]
    return list(dict.fromkeys(item for item in (*written, *headless, *other) if item))


def _check_linear(layer: torch.nn.Module, name: str) -> None:
    if type(layer) not in LINEAR:
        raise unsupported(f"a LoRA on a layer of type {type(layer).__name__}", name, WEIGHTS)


def _check_targets_complete(
    layers: Mapping[str, torch.nn.Module], adapter: CheckedAdapter, present: set[str]
) -> None:
    """A list of target names must be met in full; patterns and layer selections leave it to the file."""
    targets = adapter.config["target_modules"]
    selected = any(
        adapter.config.get(field) not in (None, []) for field in ("layers_to_transform", "exclude_modules")
    )
    if not isinstance(targets, list) or selected:
        return
    suffixes = tuple(f".{target}" for target in targets)
    raise_mismatch(
        [
            mismatch(f"base_model.model.{name}.lora_A.weight", "a tensor, as target_modules says", "nothing")
            for name, layer in layers.items()
            if isinstance(layer, LINEAR)
            and (name in targets or name.endswith(suffixes))
            and name not in present
        ]
    )


def _check_transposed(
    layers: Mapping[str, torch.nn.Module], adapter: CheckedAdapter, places: Mapping[str, str]
) -> None:
    """`fan_in_fan_out` says that weights are stored transposed, as Conv1D's are; PEFT sets it in training."""
    given = adapter.config.get("fan_in_fan_out")
    kinds = {type(layers[place]) for place in places.values()}
    if (given is True and Conv1D not in kinds) or (given is False and kinds == {Conv1D}):
        kind = "Conv1D" if Conv1D in kinds else "torch.nn.Linear"
        raise refuse(
            "invalid_config",
            f"{str(not given).lower()} is expected, since the adapted layers of this base are {kind}",
            file=CONFIG,
            field="fan_in_fan_out",
        )


def mismatch(name: str, expected: str, found: str) -> InputProblem:
    """One tensor that differs from what the base asks for."""
    return InputProblem(message=f"expected {expected}, found {found}", file=WEIGHTS, field=name)


def raise_mismatch(problems: list[InputProblem]) -> None:
    """Raise `InvalidInput` (`adapter_base_mismatch`) where there is any problem."""
    if problems:
        first = problems[0]
        raise InvalidInput(
            "adapter_base_mismatch",
            "the adapter does not fit the base model: "
            f"{counted(len(problems), 'tensor differs', 'tensors differ')}, "
            f"first {first.field}: {first.message}",
            problems[:_MAX_LISTED],
        )
