"""GGUF LoRA, read back with the `gguf` package: names by its map, numbers as llama.cpp adds them up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from atomscope.errors import SteeringError
from atomscope.steering import GGUF, GGUF_DELTA, PROVENANCE
from atomscope.steering.gguf_lora import GGUF_MODEL_TYPES, gguf_lora
from atomscope.steering.layers import Pair
from tests.sdk.steering.lora import SCALES, SHAPES, linear, matrices, product, steered, steps, write_adapter

QWEN: dict[str, Any] = {"model_type": "qwen2", "num_attention_heads": 3}
NAMES = dict(zip(SHAPES, ("blk.0.attn_q.weight", "blk.1.ffn_down.weight"), strict=True))

LAYERS: dict[str, tuple[gguf.MODEL_ARCH, str, tuple[str, ...]]] = {
    **{
        kind: (arch, "model.layers", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
               "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"))
        for kind, arch in (
            ("llama", gguf.MODEL_ARCH.LLAMA),
            ("mistral", gguf.MODEL_ARCH.LLAMA),
            ("qwen2", gguf.MODEL_ARCH.QWEN2),
            ("qwen3", gguf.MODEL_ARCH.QWEN3),
            ("gemma2", gguf.MODEL_ARCH.GEMMA2),
            ("gemma3_text", gguf.MODEL_ARCH.GEMMA3),
        )
    },
    "phi3": (gguf.MODEL_ARCH.PHI3, "model.layers",
             ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")),
    "gpt_neox": (gguf.MODEL_ARCH.GPTNEOX, "gpt_neox.layers",
                 ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")),
    "gpt2": (gguf.MODEL_ARCH.GPT2, "transformer.h",
             ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
}  # fmt: skip


def read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Facts and tensors of a GGUF file."""
    reader = gguf.GGUFReader(path)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    return facts, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def added(facts: dict[str, Any], tensors: dict[str, NDArray[Any]], name: str) -> NDArray[np.float64]:
    """What llama.cpp adds to a weight: alpha / rank times B A."""
    a, b = (tensors[f"{name}.lora_{side}"].astype(np.float64) for side in "ab")
    return facts["adapter.lora.alpha"] / len(a) * (b @ a)


def pair(rows: int = 12, seed: int = 0) -> Pair:
    random = np.random.default_rng(seed)
    return Pair(
        random.normal(size=(2, 5)).astype(np.float32), random.normal(size=(rows, 2)).astype(np.float32)
    )


def test_the_file_says_what_it_is_and_where_it_came_from(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    out = steered(adapter, 0.2, format="gguf", base_config=QWEN).save(tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == sorted([GGUF, PROVENANCE])
    facts, tensors = read(out / GGUF)
    assert facts["general.architecture"] == "qwen2"
    assert facts["general.type"] == gguf.GGUFType.ADAPTER
    assert facts["adapter.type"] == "lora"
    assert json.loads(facts["atomscope.steering"]) == json.loads((out / PROVENANCE).read_text())
    assert tensors.keys() == {f"{name}.lora_{side}" for name in NAMES.values() for side in "ab"}
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_added_is_the_steered_lora_whatever_scale_its_layers_have(
    rslora: bool, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", use_rslora=rslora)
    found = read(steered(adapter, 0.2, format="gguf", base_config=QWEN).save(tmp_path / "out") / GGUF)
    moved = {name: matrices(0)[name] + step for name, step in steps(0.2).items()}
    for layer, (_, rank, _) in SHAPES.items():
        scale = SCALES[layer] * (np.sqrt(rank) if rslora else 1)
        wanted = scale * product(moved, layer)
        assert np.allclose(added(*found, NAMES[layer]), wanted, rtol=1e-5, atol=1e-6)


def test_what_a_delta_adds_is_linear_in_the_strength(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    out = steered(adapter, -0.3, format="gguf-delta", base_config=QWEN).save(tmp_path / "out")
    found = read(out / GGUF_DELTA)
    for layer in SHAPES:
        assert np.allclose(added(*found, NAMES[layer]), linear(-0.3, layer), rtol=1e-5, atol=1e-6)


def test_every_architecture_is_named_as_the_gguf_package_names_it() -> None:
    assert set(LAYERS) == set(GGUF_MODEL_TYPES)
    for kind, (arch, stem, parts) in LAYERS.items():
        config = {"model_type": kind, "num_attention_heads": 2, "tie_word_embeddings": False}
        modules = [f"{stem}.{layer}.{part}" for layer in (0, 11) for part in parts]
        modules += [] if arch is gguf.MODEL_ARCH.GEMMA2 else ["lm_head"]
        facts, tensors = gguf_lora({module: pair() for module in modules}, config)
        assert facts["general.architecture"] == gguf.MODEL_ARCH_NAMES[arch]
        names = gguf.get_tensor_name_map(arch, 12)
        assert tensors.keys() == {
            f"{names.get_name(module)}.weight.lora_{side}" for module in modules for side in "ab"
        }


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_query_and_key_rows_lie_in_pairs_as_llama_cpps_rotary_embedding_takes_them(kind: str) -> None:
    """Against the permutation of llama.cpp's converter, of 4 query and 2 key-value heads."""
    layer = "model.layers.0.self_attn"
    pairs = {f"{layer}.{part}": pair(rows) for part, rows in (("q_proj", 24), ("k_proj", 12), ("v_proj", 12))}
    config = {"model_type": kind, "num_attention_heads": 4, "num_key_value_heads": 2}
    _, tensors = gguf_lora(pairs, config)

    def permuted(weights: NDArray[Any], heads: int) -> NDArray[Any]:
        shape = (heads, 2, len(weights) // heads // 2, *weights.shape[1:])
        return weights.reshape(shape).swapaxes(1, 2).reshape(weights.shape)

    for part, heads, name in (("q_proj", 4, "attn_q"), ("k_proj", 2, "attn_k")):
        own = pairs[f"{layer}.{part}"]
        assert (tensors[f"blk.0.{name}.weight.lora_b"] == permuted(own.b, heads)).all()
        assert (tensors[f"blk.0.{name}.weight.lora_b"] != own.b).any()
        assert (tensors[f"blk.0.{name}.weight.lora_a"] == own.a).all()
    assert (tensors["blk.0.attn_v.weight.lora_b"] == pairs[f"{layer}.v_proj"].b).all()


def test_query_key_and_value_of_gpt_neox_lie_one_after_the_other() -> None:
    own = pair(24)
    config = {"model_type": "gpt_neox", "num_attention_heads": 2}
    _, tensors = gguf_lora({"gpt_neox.layers.3.attention.query_key_value": own}, config)
    heads = own.b.reshape(2, 3, 4, 2)
    wanted = np.concatenate([heads[:, part].reshape(8, 2) for part in range(3)])
    assert (tensors["blk.3.attn_qkv.weight.lora_b"] == wanted).all()


@pytest.mark.parametrize("module", ["layers.2.mlp.up_proj", "model.language_model.layers.2.mlp.up_proj"])
def test_layers_named_from_within_or_around_the_model_are_found(module: str) -> None:
    assert "blk.2.ffn_up.weight.lora_a" in gguf_lora({module: pair()}, QWEN)[1]


@pytest.mark.parametrize(
    ("config", "module", "message"),
    [
        (None, "model.layers.0.mlp.up_proj", r"needs the base's config\.json"),
        ({"model_type": "mamba"}, "x", "not written for a base of model_type 'mamba'; for llama, mistral"),
        ({"model_type": ["llama"]}, "x", "not written for a base"),
        (
            QWEN,
            "model.layers.0.mlp.experts",
            r"no place for a LoRA on model\.layers\.0\.mlp\.experts in q",
        ),
        (QWEN, "visual.layers.0.mlp.up_proj", "no place for a LoRA on visual"),
        (QWEN | {"tie_word_embeddings": True}, "lm_head", "output head of .* is its embedding"),
        (
            {"model_type": "gemma2", "tie_word_embeddings": False},
            "lm_head",
            "output head of .* is its embedding",
        ),
        ({"model_type": "gpt2"}, "lm_head", "output head of .* is its embedding"),
        ({"model_type": "llama"}, "model.layers.0.self_attn.q_proj", "num_attention_heads: a whole number"),
        (
            {"model_type": "llama", "num_attention_heads": 5},
            "model.layers.0.self_attn.q_proj",
            "12 rows of blk.0.attn_q are not those of 5 heads",
        ),
    ],
)
def test_what_llama_cpp_has_no_place_for_is_refused_by_name(
    config: dict[str, Any] | None, module: str, message: str
) -> None:
    with pytest.raises(SteeringError, match=message):
        gguf_lora({module: pair()}, config)


def test_two_layers_that_are_one_tensor_are_refused() -> None:
    pairs = {"layers.0.mlp.up_proj": pair(), "model.layers.0.mlp.up_proj": pair()}
    with pytest.raises(SteeringError, match="one and the same tensor"):
        gguf_lora(pairs, QWEN)
