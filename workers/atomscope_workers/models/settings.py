"""The settings of a LoRA: which are plain, which only steered the training, and which are refused by name."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from peft import LoraConfig

from atomscope.errors import InvalidInput
from atomscope_workers.models.folder import refuse
from atomscope_workers.models.patterns import check_rank_and_alpha

CONFIG = "adapter_config.json"

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
        "lora_dtype",
        "lora_ga_config",
        "lorap_emb_lr",
        "lorap_lr_ratio",
        "megatron_core",
        "merge_weights",
        "peft_version",
        "qalora_group_size",
        "revision",
        "unsloth_fixed",
        "unsloth_version",
    }
)
"""Settings of training, or that only say which layers have a LoRA, which the file's names say better."""

_CHECKED = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "bias",
        "fan_in_fan_out",
        "init_lora_weights",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
"""Settings that are read, each with a check of its own."""

_REFUSED = {
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "ensure_weight_tying": "LoRA on tied layers",
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

_LIBRARIES = ("transformers", "peft", "unsloth", "unsloth_zoo")
"""Where an `auto_mapping` may point. Nothing is imported for it here; PEFT's AutoPeftModel would."""

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)

_DEFAULTS = {
    item.name: item.default
    for item in dataclasses.fields(LoraConfig)
    if item.default is not dataclasses.MISSING
}


def check_settings(config: dict[str, Any]) -> None:
    """Check `adapter_config.json`.

    Raises `InvalidInput`: `unsupported_adapter`, `invalid_config`, `remote_code`, with the setting's name.
    """
    if config.get("peft_type") != "LORA":
        raise unsupported(f"peft_type {config.get('peft_type')!r}", "peft_type")
    if config.get("task_type") not in ("CAUSAL_LM", None):
        raise unsupported(f"task_type {config['task_type']!r}", "task_type")
    if config.get("bias", "none") not in ("none", None):
        raise unsupported(f"a trained bias ({config['bias']!r})", "bias")
    init = config.get("init_lora_weights", True)
    if not (init is None or isinstance(init, bool) or init in _INIT_THAT_KEEPS_THE_BASE):
        raise unsupported(
            f"the initialisation {init!r}, which changes more than A and B,", "init_lora_weights"
        )
    _check_auto_mapping(config.get("auto_mapping"))
    for field, value in sorted(config.items()):
        if field in _REFUSED and not _says_nothing(value):
            raise unsupported(_REFUSED[field], field)
        known = field in _NEUTRAL or field in _CHECKED or field in _REFUSED
        if not known and not _says_nothing(value) and value != _DEFAULTS.get(field):
            raise unsupported("this setting, which this version does not know,", field)
    for field in ("use_rslora", "fan_in_fan_out"):
        if config.get(field) not in (True, False, None):
            raise refuse("invalid_config", "true or false is expected", file=CONFIG, field=field)
    check_rank_and_alpha(config, CONFIG)
    _check_targets(config.get("target_modules"))


def unsupported(what: str, field: str, file: str = CONFIG) -> InvalidInput:
    """The refusal of something that a LoRA may be, but that is not audited."""
    return refuse(
        "unsupported_adapter",
        f"{what} is not supported; plain LoRA on linear layers is",
        file=file,
        field=field,
    )


def _says_nothing(value: object) -> bool:
    """Whether a setting is off: false, zero, empty, or an object of nothing but such values."""
    stack: list[object] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
        elif item:
            return False
    return True


def _check_auto_mapping(mapping: object) -> None:
    """PEFT writes the class of the base here when no task is given, and Unsloth a mark of its own."""
    if not mapping:
        return
    fields = mapping if isinstance(mapping, dict) else {}
    library, name = fields.get("parent_library"), fields.get("base_model_class")
    if not (_dotted(library) and _dotted(name)) or str(library).split(".")[0] not in _LIBRARIES:
        raise refuse(
            "remote_code",
            f"a class of {', '.join(_LIBRARIES)} is expected; code from elsewhere is never run",
            file=CONFIG,
            field="auto_mapping",
        )


def _dotted(value: object) -> bool:
    return isinstance(value, str) and _DOTTED.fullmatch(value) is not None


def _check_targets(targets: object) -> None:
    listed = isinstance(targets, list) and targets and all(isinstance(item, str) and item for item in targets)
    if not listed and not (isinstance(targets, str) and targets):
        raise refuse(
            "invalid_config",
            "a list of module names, or a pattern, is expected",
            file=CONFIG,
            field="target_modules",
        )
