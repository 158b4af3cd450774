"""LoRA adapters: checking an untrusted folder, and refusing by name what is not plain LoRA.

Plain LoRA here is `y = W x + scaling * B A x` on linear layers (`torch.nn.Linear`, transformers' `Conv1D`)
and nothing else. Every setting that would change that, and every setting this version does not know, is
refused rather than ignored. Two files make an adapter; of what a trainer left beside them the chat template
alone is opened, elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from atomscope.errors import InputProblem, InvalidInput
from atomscope.steering.names import LoraName, module_path, parse_lora_name
from atomscope.text import counted
from atomscope_workers.models.folder import check_no_remote_code, check_plain_files, read_json_object, refuse
from atomscope_workers.models.headers import FLOATING, TensorInfo, read_header
from atomscope_workers.models.settings import CONFIG, check_settings, unsupported

WEIGHTS = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_MAX_LISTED = 5

_EMBEDDINGS = frozenset({"embed_tokens", "lm_head", "embed_in", "embed_out", "wte"})
"""Layers of which PEFT saves the base's own weights beside a LoRA: they are its target, or were resized."""


@dataclass(frozen=True)
class CheckedAdapter:
    """An adapter folder that passed every check that needs no base model."""

    folder: Path
    config: dict[str, Any]
    """`adapter_config.json` as it is."""
    tensors: dict[str, TensorInfo]
    """The LoRA matrices of `adapter_model.safetensors`, by their names there, sorted."""
    names: dict[str, LoraName]
    """What each of those names says."""
    copies: dict[str, str] = field(default_factory=dict[str, str])
    """Names of tensors that claim to be the base's own embeddings or output head -> path of that layer."""

    @property
    def modules(self) -> list[str]:
        """Paths, within the model that was trained, of the layers that have a LoRA, sorted."""
        return sorted({name.module for name in self.names.values()})


def check_adapter(folder: Path) -> CheckedAdapter:
    """Check an adapter folder: its configuration, its tensors' names, and that every value is finite.

    Raises `InvalidInput`: `missing_file`, `unsafe_file`, `pickle_weights`, `remote_code`, `invalid_config`,
    `invalid_safetensors`, `unsupported_adapter` (with the setting's or tensor's name), `non_finite_adapter`.
    """
    _check_files(folder)
    folder = folder.resolve()
    check_no_remote_code(folder, [CONFIG])
    config = read_json_object(folder, CONFIG)
    check_settings(config)
    tensors = read_header(folder / WEIGHTS, WEIGHTS)
    names = {name: found for name in sorted(tensors) if (found := parse_lora_name(name)) is not None}
    copies = {name: _copied_layer(name) for name in sorted(tensors) if name not in names}
    _check_tensors(tensors, names)
    _check_finite(folder, [*names, *copies])
    return CheckedAdapter(folder, config, {name: tensors[name] for name in names}, names, copies)


def _check_files(folder: Path) -> None:
    """The two files are there and are plain files; a folder with its weights only as a pickle is refused."""
    if not folder.is_dir():
        raise refuse(
            "missing_file", "a folder of safetensors and JSON files is expected here", file=folder.name
        )
    if not (folder / WEIGHTS).exists() and not (folder / WEIGHTS).is_symlink():
        if (folder / _PICKLED).exists():
            raise refuse(
                "pickle_weights",
                "weights in a pickle format are never read; save the adapter as safetensors",
                file=_PICKLED,
            )
        inner = sorted(path.name for path in folder.iterdir() if (path / WEIGHTS).is_file())
        if (folder / CONFIG).exists() or inner:
            there = f"; the folder holds {', '.join(inner[:_MAX_LISTED])}: give one of those" if inner else ""
            raise refuse("missing_file", f"this file is needed and is not there{there}", file=WEIGHTS)
    check_plain_files(folder, [CONFIG, WEIGHTS])


def _copied_layer(name: str) -> str:
    """The layer whose base weights the tensor `name` claims to be; raises for every other tensor."""
    layer, _, last = name.rpartition(".")
    path = module_path(layer.removesuffix(".base_layer")) if last == "weight" else None
    if path is None or path.rsplit(".", 1)[-1] not in _EMBEDDINGS:
        raise unsupported(_kind_of(name), name, WEIGHTS)
    return path


def _check_tensors(tensors: Mapping[str, TensorInfo], names: Mapping[str, LoraName]) -> None:
    if not names:
        raise refuse("invalid_safetensors", "LoRA tensors are expected; the file holds none", file=WEIGHTS)
    adapters = sorted({found.adapter for found in names.values()})
    if len(adapters) > 1:
        told = ", ".join(repr(adapter) for adapter in adapters[:_MAX_LISTED])
        other = next(name for name, found in names.items() if found.adapter == adapters[1])
        raise unsupported(f"a file of several adapters ({told})", other, WEIGHTS)
    held: dict[tuple[str, str], str] = {}
    for name, found in names.items():
        info = tensors[name]
        if info.dtype not in FLOATING or len(info.shape) != 2 or 0 in info.shape:
            raise unsupported(
                f"a LoRA tensor of dtype {info.dtype} and shape {list(info.shape)}", name, WEIGHTS
            )
        first = held.setdefault((found.module, found.side), name)
        if first != name:
            raise refuse(
                "invalid_safetensors",
                f"it is the same matrix as {first}; each is expected once",
                file=WEIGHTS,
                field=name,
            )
    for name, found in names.items():
        other = "B" if found.side == "A" else "A"
        if (found.module, other) not in held:
            raise refuse(
                "invalid_safetensors",
                f"its lora_{other} is missing; both matrices are expected",
                file=WEIGHTS,
                field=name,
            )


def _kind_of(name: str) -> str:
    for part, what in (
        ("lora_embedding_", "LoRA on an embedding"),
        ("lora_magnitude_vector", "DoRA (a magnitude vector)"),
        ("lora_B.bias", "LoRA with a bias"),
        ("modules_to_save", "a fully trained module"),
        ("original_module", "a fully trained module"),
        ("base_model.model.base_model.", "a LoRA trained on top of another adapter"),
        (".base_layer.lora_", "a LoRA trained on top of another adapter"),
        ("base_layer", "a saved base weight"),
        ("token_adapter", "trained token embeddings"),
        (".experts.", "LoRA on experts"),
        (".bias", "a trained bias"),
    ):
        if part in name:
            return what
    return "a tensor that is not a `base_model.model.<layer>.lora_A.weight` or `lora_B.weight`"


def _check_finite(folder: Path, names: list[str]) -> None:
    problems: list[InputProblem] = []
    with safe_open(folder / WEIGHTS, framework="pt") as stream:
        for name in names:
            if not bool(torch.isfinite(stream.get_tensor(name)).all()):
                problems.append(
                    InputProblem(
                        message="finite values are expected; it holds NaN or infinity",
                        file=WEIGHTS,
                        field=name,
                    )
                )
    if problems:
        raise InvalidInput(
            "non_finite_adapter",
            f"{counted(len(problems), 'tensor holds', 'tensors hold')} NaN or infinity in the adapter",
            problems[:20],
        )
