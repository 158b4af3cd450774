"""LoRA adapters: checking an untrusted folder, and refusing by name what is not plain LoRA.

Plain LoRA here is `y = W x + scaling * B A x` on `torch.nn.Linear` layers and nothing else. Every setting
that would change that, and every setting this version does not know, is refused rather than ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from atomscope.errors import InputProblem, InvalidInput
from atomscope_workers.models.folder import check_folder, check_no_remote_code, read_json_object, refuse
from atomscope_workers.models.headers import FLOATING, TensorInfo, read_header
from atomscope_workers.models.patterns import check_rank_and_alpha

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

_NEUTRAL = frozenset(
    {
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
    }
)
"""Settings of training, or that only say which layers have a LoRA, which the file's names say better."""

_ACCEPTED = frozenset({"alpha_pattern", "lora_alpha", "r", "rank_pattern", "target_modules", "use_rslora"})

_REFUSED = {
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "auto_mapping": "an auto_mapping",
    "ensure_weight_tying": "LoRA on tied layers",
    "fan_in_fan_out": "LoRA on transposed (Conv1D) layers",
    "kasa_config": "KaSA",
    "layer_replication": "layer replication",
    "lora_bias": "LoRA with a bias",
    "megatron_config": "Megatron layers",
    "modules_to_save": "fully trained modules (modules_to_save)",
    "monteclora_config": "MonteCLoRA",
    "runtime_config": "runtime variants",
    "target_parameters": "LoRA on parameters (target_parameters)",
    "trainable_token_indices": "trained token embeddings",
    "use_bdlora": "block-diagonal LoRA",
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "velora_config": "VeLoRA",
}

_INIT_THAT_KEEPS_THE_BASE = ("gaussian", "eva", "orthogonal")
"""Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base weights, and MiCA the layer."""

_TENSOR = re.compile(r"base_model\.model\.(?P<module>[A-Za-z0-9_.]+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True)
class CheckedAdapter:
    """An adapter folder that passed every check that needs no base model."""

    folder: Path
    config: dict[str, Any]
    """`adapter_config.json` as it is."""
    tensors: dict[str, TensorInfo]
    """Of `adapter_model.safetensors`, by name, sorted."""

    @property
    def modules(self) -> list[str]:
        """Names, within the base model, of the layers that have a LoRA, sorted."""
        return sorted({name.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for name in self.tensors})


def check_adapter(folder: Path) -> CheckedAdapter:
    """Check an adapter folder: its configuration, its tensors' names, and that every value is finite.

    Raises `InvalidInput`: `missing_file`, `unsafe_file`, `pickle_weights`, `remote_code`, `invalid_config`,
    `invalid_safetensors`, `unsupported_adapter` (with the setting's or tensor's name), `non_finite_adapter`.
    """
    names = check_folder(folder)
    folder = folder.resolve()
    check_no_remote_code(folder, names)
    config = read_json_object(folder, CONFIG)
    _check_config(config)
    tensors = read_header(folder / WEIGHTS, WEIGHTS)
    _check_tensors(tensors)
    _check_finite(folder, tensors)
    return CheckedAdapter(folder=folder, config=config, tensors=dict(sorted(tensors.items())))


def _unsupported(what: str, field: str, file: str = CONFIG) -> InvalidInput:
    return refuse(
        "unsupported_adapter",
        f"{what} is not supported; plain LoRA on linear layers is",
        file=file,
        field=field,
    )


def _check_config(config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise _unsupported(f"peft_type {config.get('peft_type')!r}", "peft_type")
    if config.get("task_type") not in ("CAUSAL_LM", None):
        raise _unsupported(f"task_type {config['task_type']!r}", "task_type")
    if config.get("bias", "none") != "none":
        raise _unsupported(f"a trained bias ({config['bias']!r})", "bias")
    init = config.get("init_lora_weights", True)
    if not (init is None or isinstance(init, bool) or init in _INIT_THAT_KEEPS_THE_BASE):
        raise _unsupported(
            f"the initialisation {init!r}, which changes more than A and B,", "init_lora_weights"
        )
    for field, value in sorted(config.items()):
        if field in _REFUSED and value:
            raise _unsupported(_REFUSED[field], field)
        known = field in _NEUTRAL or field in _ACCEPTED or field in _REFUSED
        if not known and field not in ("peft_type", "task_type", "bias", "init_lora_weights") and value:
            raise _unsupported("this setting, which this version does not know,", field)
    if config.get("use_rslora") not in (True, False, None):
        raise refuse("invalid_config", "true or false is expected", file=CONFIG, field="use_rslora")
    check_rank_and_alpha(config, CONFIG)
    _check_targets(config.get("target_modules"))


def _check_targets(targets: object) -> None:
    listed = isinstance(targets, list) and targets and all(isinstance(item, str) and item for item in targets)
    if not listed and not (isinstance(targets, str) and targets):
        raise refuse(
            "invalid_config",
            "a list of module names, or a pattern, is expected",
            file=CONFIG,
            field="target_modules",
        )


def _check_tensors(tensors: dict[str, TensorInfo]) -> None:
    if not tensors:
        raise refuse("invalid_safetensors", "LoRA tensors are expected; the file holds none", file=WEIGHTS)
    for name in sorted(tensors):
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise _unsupported(_kind_of(name), name, WEIGHTS)
        info = tensors[name]
        if info.dtype not in FLOATING or len(info.shape) != 2 or 0 in info.shape:
            raise _unsupported(
                f"a LoRA tensor of dtype {info.dtype} and shape {list(info.shape)}", name, WEIGHTS
            )
        other = "B" if match["side"] == "A" else "A"
        if f"{PREFIX}{match['module']}.lora_{other}.weight" not in tensors:
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
        ("base_layer", "a saved base weight"),
        ("token_adapter", "trained token embeddings"),
        (".bias", "a trained bias"),
    ):
        if part in name:
            return what
    return "a tensor that is not a `base_model.model.<layer>.lora_A.weight` or `lora_B.weight`"


def _check_finite(folder: Path, tensors: dict[str, TensorInfo]) -> None:
    problems: list[InputProblem] = []
    with safe_open(folder / WEIGHTS, framework="pt") as stream:
        for name in sorted(tensors):
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
            f"{len(problems)} tensors of the adapter hold NaN or infinity",
            problems[:20],
        )
