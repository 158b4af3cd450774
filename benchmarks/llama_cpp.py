"""Steered GGUF adapters on llama.cpp itself, against the steered PEFT adapters on transformers.

    pip install xllamacpp          # llama.cpp as a wheel, no dependency of Atomscope
    PYTHONPATH=. python benchmarks/llama_cpp.py [ARCHITECTURE ...]

A tiny random base of every architecture that GGUF is written for is converted here, as llama.cpp's converter
does it, with the tokenizer of SmolLM2. An adapter of unequal ranks and alphas, rank-stabilised, is steered at
strength 0.2. Told are the largest differences in the log-probabilities of the 100 likeliest tokens: of the
base (what the conversion and llama.cpp's kernels cost), of the steered adapter, and of a delta beside the
adapter at scale 1; and how far each moves from the base. Then the same by HTTP, as docs/serving.md has it: a
server started with the delta at scale 0, its scale set for one request, and for the server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import torch
import transformers
from gguf import MODEL_ARCH
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.workers.models.reference import logits, peft_model
from tests.workers.models.steering import load_beside, make_bundle
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from atomscope_workers.models.gguf import smollm2_gguf

VOCABULARY, LAYERS, HEADS, HIDDEN, INNER, LENGTH = 49152, 2, 4, 64, 128, 128
HEAD = HIDDEN // HEADS
IDS = [int(token) for token in np.random.default_rng(0).integers(100, 40_000, 16)]
SHOWN = 100
ASKED = {"n_predict": 1, "n_probs": SHOWN, "temperature": 0.0, "cache_prompt": False}
STRENGTH = 0.2

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
    "max_position_embeddings": LENGTH, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    "initializer_range": 0.2, "num_attention_heads": HEADS,
}  # fmt: skip
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_GEMMA = {**_GROUPED, "head_dim": HEAD, "query_pre_attn_scalar": HEAD, "sliding_window": 64}
_SPLIT = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

BASES: dict[str, tuple[str, dict[str, Any], MODEL_ARCH, list[str]]] = {
    "llama": ("LlamaConfig", _GROUPED, MODEL_ARCH.LLAMA, [*_SPLIT, "lm_head"]),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": None}, MODEL_ARCH.LLAMA, _SPLIT),
    "qwen2": ("Qwen2Config", _GROUPED, MODEL_ARCH.QWEN2, [*_SPLIT, "lm_head"]),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": HEAD}, MODEL_ARCH.QWEN3, _SPLIT),
    "gemma2": ("Gemma2Config", _GEMMA, MODEL_ARCH.GEMMA2, _SPLIT),
    "gemma3": (
        "Gemma3TextConfig", {**_GEMMA, "layer_types": ["sliding_attention"] * LAYERS}, MODEL_ARCH.GEMMA3,
        _SPLIT,
    ),
    "phi3": (
        "Phi3Config", {**_GROUPED, "original_max_position_embeddings": LENGTH}, MODEL_ARCH.PHI3,
        ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    ),
    "gpt_neox": (
        "GPTNeoXConfig", _COMMON, MODEL_ARCH.GPTNEOX,
        ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    ),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS,
         "n_positions": LENGTH, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2},
        MODEL_ARCH.GPT2, ["c_attn", "c_proj", "c_fc"],
    ),
}  # fmt: skip


def make_base(name: str, folder: Path) -> PreTrainedModel:
    """A random model, saved by transformers."""
    kind, settings, _, _ = BASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter.data, parameter.data.mean().item(), 0.1)
    model.save_pretrained(folder)
    return model


def convert(name: str, model: PreTrainedModel, path: Path) -> None:
    """The base as GGUF, as llama.cpp's converter writes it."""
    config, arch = model.config, BASES[name][2]
    writer = gguf.GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[arch])
    _describe(name, config, writer)
    for key, field in gguf.GGUFReader(smollm2_gguf()).fields.items():
        if key.startswith("tokenizer."):
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    names = gguf.get_tensor_name_map(arch, LAYERS)
    for key, tensor in model.state_dict().items():
        if key.endswith((".attn.bias", ".masked_bias")) or (
            key == "lm_head.weight" and config.tie_word_embeddings
        ):
            continue
        found = names.get_name(key, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(found, np.ascontiguousarray(_turned(name, key, tensor.float().numpy())))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(name: str, config: PretrainedConfig, writer: gguf.GGUFWriter) -> None:
    writer.add_context_length(LENGTH)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(4 * HIDDEN if name == "gpt2" else INNER)
    writer.add_head_count(HEADS)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(0)
    if name in ("gpt2", "gpt_neox"):
        writer.add_layer_norm_eps(config.layer_norm_epsilon if name == "gpt2" else config.layer_norm_eps)
    else:
        writer.add_head_count_kv(2)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_key_length(HEAD)
        writer.add_value_length(HEAD)
    if name != "gpt2":
        rope = config.rope_parameters
        rope = rope.get("full_attention", rope)
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(int(HEAD * rope.get("partial_rotary_factor", 1.0)))
    if name.startswith("gemma"):
        writer.add_sliding_window(64)
    if name == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if name == "phi3":
        writer.add_rope_scaling_orig_ctx_len(LENGTH)
        writer.add_sliding_window(0)
    if name == "gpt_neox":
        writer.add_parallel_residual(config.use_parallel_residual)


def _turned(name: str, key: str, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows and values as llama.cpp wants them."""
    if name in ("llama", "mistral") and ("q_proj" in key or "k_proj" in key):
        heads = HEADS if "q_proj" in key else 2
        return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
    if name.startswith("gemma") and key.endswith("norm.weight"):
        return weight + 1
    if name == "gpt2" and key.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return weight.T
    if name == "gpt_neox" and "query_key_value" in key:
        split = weight.reshape(HEADS, 3, HEAD, *weight.shape[1:])
        return split.swapaxes(0, 1).reshape(weight.shape)
    return weight


def make_adapter(name: str, base: Path, folder: Path) -> None:
    """A random LoRA on every kind of layer."""
    targets = BASES[name][3]
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=targets,
        use_rslora=True,
        rank_pattern={targets[0]: 2},
        alpha_pattern={targets[-1]: 24},
        fan_in_fan_out=name == "gpt2",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    model.save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(1)
    drawn = {
        key: 0.1 * torch.randn(value.shape, generator=generator)
        for key, value in sorted(load_file(path).items())
    }
    save_file(drawn, path, metadata={"format": "pt"})


def on_transformers(model: torch.nn.Module) -> NDArray[np.float64]:
    return torch.log_softmax(logits(model, torch.tensor(IDS))[-1].double(), -1).numpy()


def serve(base: Path, adapters: dict[Path, float]) -> Any:  # noqa: ANN401
    """A server of llama.cpp in this process, which listens on a free port."""
    import xllamacpp  # noqa: PLC0415  (not installed with Atomscope)

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(base), LENGTH, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.port = 0
    infos = []
    for adapter, scale in adapters.items():
        info = xllamacpp.CommonAdapterLoraInfo()
        info.path, info.scale = str(adapter), scale
        infos.append(info)
    params.lora_adapters = infos
    return xllamacpp.Server(params)


def on_llama_cpp(base: Path, adapters: list[Path]) -> dict[int, float]:
    """Log-probabilities of the likeliest next tokens, by id."""
    server = serve(base, dict.fromkeys(adapters, 1.0))
    answer = server.handle_completions({**ASKED, "prompt": IDS})
    told = json.loads(answer) if isinstance(answer, str | bytes) else answer
    first = told["choices"][0]["logprobs"]["content"][0]
    return {item["id"]: item["logprob"] for item in first["top_logprobs"]}


def over_http(address: str, scales: list[float] | None = None) -> dict[int, float]:
    """The same by `POST /completion`, under the server's scales or those of the request."""
    lora = [] if scales is None else [{"id": place, "scale": scale} for place, scale in enumerate(scales)]
    body = {**ASKED, "prompt": IDS, **({"lora": lora} if lora else {})}
    answer = httpx.post(f"{address}/completion", json=body, timeout=60).raise_for_status()
    return {
        item["id"]: item["logprob"] for item in answer.json()["completion_probabilities"][0]["top_logprobs"]
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """llama.cpp writes its log to the standard error of the process."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def compare(name: str, folder: Path) -> None:
    base, adapter = folder / "base", folder / "lora"
    model = make_base(name, base)
    convert(name, model, folder / "base.gguf")
    make_adapter(name, base, adapter)
    bundle = make_bundle(folder / "bundle", base, adapter)
    same = bundle.steer({4: STRENGTH}).save(folder / "same")
    delta = bundle.steer({4: STRENGTH}, format="delta").save(folder / "delta")
    plain_gguf = bundle.steer({4: 0.0}, format="gguf").save(folder / "plain") / "adapter.gguf"
    same_gguf = bundle.steer({4: STRENGTH}, format="gguf").save(folder / "same-gguf") / "adapter.gguf"
    delta_gguf = bundle.steer({4: STRENGTH}, format="gguf-delta").save(folder / "delta-gguf") / "delta.gguf"
    unmoved = on_transformers(model)
    for what, wanted, adapters in (
        ("base", unmoved, []),
        ("steered adapter", on_transformers(peft_model(base, same)), [same_gguf]),
        (
            "delta beside it",
            on_transformers(load_beside(peft_model(base, adapter), delta, "delta")),
            [plain_gguf, delta_gguf],
        ),
    ):
        tell(name, what, on_llama_cpp(folder / "base.gguf", adapters), wanted, unmoved)
    server = serve(folder / "base.gguf", {plain_gguf: 1.0, delta_gguf: 0.0})
    address = server.listening_address
    tell(name, "as started", over_http(address), on_transformers(peft_model(base, adapter)), unmoved)
    for scale in (1.0, -0.5):
        moved = bundle.steer({4: scale * STRENGTH}, format="delta").save(folder / f"at{scale}")
        wanted = on_transformers(load_beside(peft_model(base, adapter), moved, "delta"))
        tell(name, f"request, {scale:+}", over_http(address, [1.0, scale]), wanted, unmoved)
        lora = [{"id": 0, "scale": 1.0}, {"id": 1, "scale": scale}]
        httpx.post(f"{address}/lora-adapters", json=lora, timeout=60).raise_for_status()
        tell(name, f"server, {scale:+}", over_http(address), wanted, unmoved)


def tell(
    name: str,
    what: str,
    found: dict[int, float],
    wanted: NDArray[np.float64],
    unmoved: NDArray[np.float64],
) -> None:
    off = max(abs(wanted[token] - value) for token, value in found.items())
    moved = max(abs(wanted[token] - unmoved[token]) for token in found)
    print(f"{name:9} {what:16} differs {off:.1e}, moved {moved:.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architectures", nargs="*", choices=[*BASES, []], metavar="ARCHITECTURE")
    for name in parser.parse_args().architectures or BASES:
        with tempfile.TemporaryDirectory() as folder, quiet():
            compare(name, Path(folder))


if __name__ == "__main__":
    main()
