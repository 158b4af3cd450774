"""A LoRA by llama.cpp's names: which tensor of its model each layer is, and in what order its rows lie there.

What llama.cpp does with a file of `general.type` `adapter`: W + (alpha / rank) B A, with one alpha for the
whole file and the rank that the tensors have. Its converter turns rows of some weights about; the rows of B
must be turned likewise:

- Llama and Mistral: query and key, within each head, from two halves to pairs (its rotary embedding
  rotates neighbours, that of transformers rotates halves);
- GPT-NeoX: query, key and value, from head by head to one after the other.

GPT-2's weights lie transposed in transformers; a LoRA's matrices do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomscope.errors import SteeringError
from atomscope.steering.layers import Pair
from atomscope.text import visible

_SPLIT = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class _Architecture:
    name: str
    """As llama.cpp calls it."""
    layers: Mapping[str, str]
    """Layer within a block -> the name of its tensor within a block."""
    tied: bool
    """Whether the output head is the embedding where `config.json` does not say."""
    head: bool = True
    """Whether llama.cpp has a tensor for an output head that is not."""
    rotary_pairs: bool = False
    """Whether llama.cpp rotates neighbouring rows of query and key."""


_ARCHITECTURES = {
    "llama": _Architecture("llama", _SPLIT, tied=False, rotary_pairs=True),
    "mistral": _Architecture("llama", _SPLIT, tied=False, rotary_pairs=True),
    "qwen2": _Architecture("qwen2", _SPLIT, tied=False),
    "qwen3": _Architecture("qwen3", _SPLIT, tied=False),
    "gemma2": _Architecture("gemma2", _SPLIT, tied=True, head=False),
    "gemma3_text": _Architecture("gemma3", _SPLIT, tied=True),
    "phi3": _Architecture(
        "phi3",
        {
            "self_attn.qkv_proj": "attn_qkv",
            "self_attn.o_proj": "attn_output",
            "mlp.gate_up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
        },
        tied=False,
    ),
    "gpt_neox": _Architecture(
        "gptneox",
        {
            "attention.query_key_value": "attn_qkv",
            "attention.dense": "attn_output",
            "mlp.dense_h_to_4h": "ffn_up",
            "mlp.dense_4h_to_h": "ffn_down",
        },
        tied=False,
    ),
    "gpt2": _Architecture(
        "gpt2",
        {
            "attn.c_attn": "attn_qkv",
            "attn.c_proj": "attn_output",
            "mlp.c_fc": "ffn_up",
            "mlp.c_proj": "ffn_down",
        },
        tied=True,
    ),
}
"""By the base's `model_type`."""

GGUF_MODEL_TYPES = tuple(_ARCHITECTURES)

_BLOCK = re.compile(r"(?:(?:model|transformer|gpt_neox)\.)?(?:layers|h)\.(\d+)\.(.+)")
_HEADS = frozenset({"lm_head", "embed_out"})


def gguf_lora(
    pairs: Mapping[str, Pair], base_config: Mapping[str, Any] | None
) -> tuple[dict[str, str | float], dict[str, NDArray[np.float32]]]:
    """Facts and tensors of the GGUF file of an adapter's layers, whose scales are in the matrices already.

    `base_config` is the `config.json` of the base model. Raises `SteeringError` where that is not known or of
    another architecture, and for a layer of which llama.cpp has no tensor.
    """
    architecture = _architecture(base_config)
    config = base_config or {}
    # One alpha for all, so layers of a lower rank would be multiplied by more.
    alpha = max(pair.rank for pair in pairs.values())
    tensors: dict[str, NDArray[np.float32]] = {}
    for module, pair in sorted(pairs.items()):
        name = _tensor_name(module, architecture, config)
        rows = _row_order(name, len(pair.b), architecture, config)
        share = np.float32(pair.rank / alpha)
        tensors[f"{name}.weight.lora_a"] = pair.a
        tensors[f"{name}.weight.lora_b"] = (pair.b if rows is None else pair.b[rows]) * share
    if len(tensors) != 2 * len(pairs):
        raise SteeringError("two layers of the adapter are one and the same tensor to llama.cpp")
    facts: dict[str, str | float] = {
        "general.architecture": architecture.name,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
    }
    return facts, tensors


def _architecture(config: Mapping[str, Any] | None) -> _Architecture:
    if config is None:
        raise SteeringError(
            "GGUF needs the base's config.json, which bundles of an earlier version do not hold: audit again"
        )
    kind = config.get("model_type")
    found = _ARCHITECTURES.get(kind) if isinstance(kind, str) else None
    if found is None:
        raise SteeringError(
            f"GGUF is not written for a base of model_type {kind!r}; for {', '.join(_ARCHITECTURES)} it is"
        )
    return found


def _tensor_name(module: str, architecture: _Architecture, config: Mapping[str, Any]) -> str:
    """What llama.cpp calls the layer, `.weight` left out."""
    # Multimodal models of transformers have the text model inside.
    path = ".".join(segment for segment in module.split(".") if segment != "language_model")
    if path in _HEADS:
        said = config.get("tie_word_embeddings")
        tied = architecture.tied if said is None else said
        if tied or not architecture.head:
            raise SteeringError(
                f"GGUF has no place for a LoRA on {visible(module)}: the output head of {architecture.name} "
                "is its embedding here, and llama.cpp keeps one tensor of the two"
            )
        return "output"
    found = _BLOCK.fullmatch(path)
    name = architecture.layers.get(found[2]) if found else None
    if found is None or name is None:
        raise SteeringError(f"GGUF has no place for a LoRA on {visible(module)} in {architecture.name}")
    return f"blk.{found[1]}.{name}"


def _row_order(
    name: str, rows: int, architecture: _Architecture, config: Mapping[str, Any]
) -> NDArray[np.int64] | None:
    """Which row of transformers' weight lies at each place of llama.cpp's; None where none is moved."""
    kind = name.rpartition(".")[2]
    heads = _heads(config, "num_attention_heads")
    if architecture.rotary_pairs and kind in ("attn_q", "attn_k"):
        if kind == "attn_k":
            heads = _heads(config, "num_key_value_heads", heads)
        return _split(rows, (heads, 2, -1), name).swapaxes(1, 2).ravel()
    if architecture.name == "gptneox" and kind == "attn_qkv":
        return _split(rows, (heads, 3, -1), name).swapaxes(0, 1).ravel()
    return None


def _split(rows: int, shape: tuple[int, int, int], name: str) -> NDArray[np.int64]:
    if rows % (shape[0] * shape[1]):
        raise SteeringError(f"the {rows} rows of {name} are not those of {shape[0]} heads")
    return np.arange(rows).reshape(shape)


def _heads(config: Mapping[str, Any], field: str, default: int | None = None) -> int:
    value = config.get(field)
    if value is None:
        value = default if default is not None else config.get("n_head")
    if type(value) is not int or value < 1:
        raise SteeringError(f"config.json of the base: {field}: a whole number from 1 is expected")
    return value
