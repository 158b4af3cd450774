"""Base models: checking an untrusted folder, then loading it with nothing but safetensors."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from atomscope.errors import InvalidInput
from atomscope.text import counted
from atomscope_workers.models.attention import attention_of
from atomscope_workers.models.device_memory import free_bytes, free_host_bytes, size_text
from atomscope_workers.models.folder import check_folder, check_no_remote_code, read_json_object, refuse
from atomscope_workers.models.headers import TensorInfo, read_header
from atomscope_workers.models.multimodal import TEXT_KEYS, WHOLE, is_beside, text_config
from atomscope_workers.models.offload import FITS, Placement, placement
from atomscope_workers.models.positions import check_positions
from atomscope_workers.models.quantized import check_full_precision

logger = logging.getLogger(__name__)

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MistralForCausalLM": "mistral",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
    "Phi3ForCausalLM": "phi3",
    "GPTNeoXForCausalLM": "gpt_neox",
    "GPT2LMHeadModel": "gpt2",
}
"""Accepted architectures and the `model_type` of each."""

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
"""What transformers loads an adapter by, from whatever file it finds beside it."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_MAX_INDEX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class CheckedBase:
    """A base model's folder that passed every check that needs no weights."""

    folder: Path
    config: PretrainedConfig
    tensors: dict[str, TensorInfo]
    """Of all its safetensors files, by name; of a multimodal model those of its text model."""
    multimodal: bool = False
    """Whether the folder holds a multimodal model, of which the base is the text model."""

    @property
    def architecture(self) -> str:
        return str((self.config.architectures or [""])[0])


def check_base(folder: Path) -> CheckedBase:
    """Check a base model's folder without loading it.

    Raises `InvalidInput`: `missing_file`, `unsafe_file`, `pickle_weights`, `remote_code`, `invalid_config`,
    `unsupported_architecture`, `quantized_model`, `invalid_safetensors`.
    """
    names = check_folder(folder, (WEIGHTS, INDEX))
    folder = folder.resolve()
    check_no_remote_code(folder, names)
    if ADAPTER in names:
        raise refuse(
            "invalid_config",
            "an adapter within the base's folder would be loaded with the base: take it out, or merge it",
            file=ADAPTER,
        )
    raw = read_json_object(folder, "config.json")
    text = text_config(raw)
    _check_architecture(raw if text is None else text)
    if text is not None:
        check_full_precision(raw)
    if not any(name in names for name in _TOKENIZER_FILES[:3]):
        raise refuse("missing_file", "the tokenizer of the base model is needed", file=_TOKENIZER_FILES[0])
    tensors = _check_weights(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a hostile configuration makes transformers raise
        raise refuse(
            "invalid_config", f"transformers cannot read it ({_first_line(error)})", file="config.json"
        ) from error
    if text is None:
        return CheckedBase(folder=folder, config=config, tensors=tensors)
    config = config.text_config
    config.architectures = text["architectures"]
    if "eos_token_id" in raw:  # the end of a turn, beside that of a text
        config.eos_token_id = raw["eos_token_id"]
    inner = {name: info for name, info in tensors.items() if not is_beside(name)}
    return CheckedBase(folder=folder, config=config, tensors=inner, multimodal=True)


def load_base(base: CheckedBase, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The base model in eval mode on `device`, in `dtype`, no parameter requiring a gradient.

    One that is larger than what is free there has layers elsewhere, which come over when they run
    (`models.offload`). Raises `InvalidInput`: `base_weights_mismatch` where the weights do not fill the
    architecture exactly, `not_enough_memory` where what has to be on the device does not fit.
    """
    placed = _placement(base, dtype, device)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base.folder,
            config=base.config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation=attention_of(base.config),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are named below
            device_map=None if placed is None else placed.places,
            key_mapping=TEXT_KEYS if base.multimodal else None,
        )
    except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise refuse(
            "invalid_config", f"the model cannot be built ({_first_line(error)})", file="config.json"
        ) from error
    model: PreTrainedModel = loaded[0]
    _check_loading(loaded[1], is_beside if base.multimodal else lambda _: False)
    model.requires_grad_(False)
    if placed is None:
        torch.nn.Module.to(model, device)
    return model.eval()


def _placement(base: CheckedBase, dtype: torch.dtype, device: torch.device) -> Placement | None:
    """Where the layers of a base lie that does not fit its device; None where it fits."""
    free = free_bytes(device)
    if dtype.itemsize * sum(math.prod(info.shape) for info in base.tensors.values()) <= FITS * free:
        return None  # without the architecture, whose misfits are told by name once weights are loaded
    found = placement(build_meta_base(base), dtype, device, free=free, free_host=free_host_bytes())
    if found is None:
        return None
    if found.held > free:
        raise InvalidInput(
            "not_enough_memory",
            f"the base takes {size_text(found.total)}, {size_text(found.held)} of it on {device.type} "
            f"even with its layers elsewhere, and {size_text(free)} are free there. What helps: more "
            "memory, or `dtype: bfloat16`",
        )
    logger.warning(
        "the base takes %s, of which %s are held on %s: its other layers are moved there whenever they run",
        size_text(found.total),
        size_text(found.held),
        device.type,
    )
    return found


def build_meta_base(base: CheckedBase) -> PreTrainedModel:
    """The architecture alone, on the meta device: names and shapes without memory.

    Raises `InvalidInput`: `invalid_config` where transformers cannot build it, `base_weights_mismatch` where
    it is larger than the weights, so that a configuration cannot ask for memory that no file backs.
    """
    try:
        if base.config.num_hidden_layers > len(base.tensors):
            raise refuse(
                "base_weights_mismatch",
                f"the weights hold {counted(len(base.tensors), 'tensor')}, fewer than that many layers need",
                file="config.json",
                field="num_hidden_layers",
            )
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                base.config, dtype=torch.float32, attn_implementation=attention_of(base.config)
            )
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        raise refuse(
            "invalid_config", f"the model cannot be built ({_first_line(error)})", file="config.json"
        ) from error
    needed = sum(parameter.numel() for parameter in model.parameters())
    held = sum(math.prod(info.shape) for info in base.tensors.values())
    if needed > held:
        raise refuse(
            "base_weights_mismatch",
            f"the architecture has {needed} parameters, the weights hold {held}",
            file="config.json",
        )
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checked base folder. Raises `InvalidInput` (`invalid_tokenizer`)."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizer libraries raise bare `Exception` on a damaged file
        raise refuse(
            "invalid_tokenizer",
            f"transformers cannot load it without code of its own ({_first_line(error)})",
            file="tokenizer.json",
        ) from error


def _accepted() -> dict[str, str]:
    """Architecture -> its `model_type`, of text models and of whole ones."""
    return ARCHITECTURES | {name: kind for name, (kind, _) in WHOLE.items()}


def _check_architecture(raw: dict[str, Any]) -> None:
    architectures = raw.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else None
    if not isinstance(name, str) or ARCHITECTURES.get(name) != raw.get("model_type"):
        raise refuse(
            "unsupported_architecture",
            f"{architectures!r} (model_type {raw.get('model_type')!r}) is not accepted; one of "
            f"{', '.join(f'{known} ({kind})' for known, kind in _accepted().items())} is",
            file="config.json",
            field="architectures",
        )
    check_full_precision(raw)
    check_positions(raw)


def _check_weights(folder: Path) -> dict[str, TensorInfo]:
    """Header of every weight file; an index must name plain files and agree with them."""
    if not (folder / INDEX).exists():
        return read_header(folder / WEIGHTS, WEIGHTS)
    index = read_json_object(folder, INDEX, _MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise refuse(
            "invalid_config",
            "an object of tensor names and file names is expected",
            file=INDEX,
            field="weight_map",
        )
    files = set(index.values())
    if not all(
        isinstance(name, str) and name.endswith(".safetensors") and "/" not in name and "\\" not in name
        for name in files
    ):
        raise refuse(
            "invalid_config", "plain names of safetensors files are expected", file=INDEX, field="weight_map"
        )
    tensors: dict[str, TensorInfo] = {}
    for name in sorted(files):
        for tensor, info in read_header(folder / name, name).items():
            if index.get(tensor) != name:
                raise refuse(
                    "invalid_safetensors", f"{INDEX} does not place this tensor here", file=name, field=tensor
                )
            tensors[tensor] = info
    missing = sorted(set(index) - set(tensors))
    if missing:
        raise refuse("invalid_safetensors", "no file holds this tensor", file=INDEX, field=missing[0])
    return tensors


def _check_loading(info: dict[str, Any], is_let_be: Callable[[str], bool]) -> None:
    for kind, message in (
        ("missing_keys", "the weights lack this tensor of the architecture"),
        ("unexpected_keys", "the architecture has no such tensor"),
        ("mismatched_keys", "its shape is not the architecture's"),
    ):
        named = [str(item[0] if isinstance(item, tuple) else item) for item in info.get(kind) or ()]
        keys = sorted(name for name in named if kind != "unexpected_keys" or not is_let_be(name))
        if keys:
            raise refuse(
                "base_weights_mismatch", f"{message} ({len(keys)} in all)", file=WEIGHTS, field=keys[0]
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
