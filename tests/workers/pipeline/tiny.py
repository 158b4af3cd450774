"""A tiny random Llama with a LoRA, and random documents for it."""

from __future__ import annotations

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.models.lora import LoraModel, LoraParameter

ATTENTION = ("q_proj", "v_proj")
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VOCABULARY = 61


def tiny_lora(
    targets: tuple[str, ...] = ATTENTION,
    *,
    dtype: torch.dtype = torch.float32,
    layers: int = 2,
    trained: list[int] | None = None,
    seed: int = 0,
) -> LoraModel:
    """Both LoRA matrices are random, so that no gradient is zero; `trained` are the layers that have them."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    base = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15)
    settings = LoraConfig(
        r=4, lora_alpha=8, target_modules=list(targets), lora_dropout=0.1, layers_to_transform=trained
    )
    model = get_peft_model(base, settings)
    parameters: list[LoraParameter] = []
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and path.endswith((".lora_A.default", ".lora_B.default")):
            torch.nn.init.normal_(module.weight, 0, 0.1)
            parameters.append(LoraParameter(path.removesuffix(".default") + ".weight", module))
    model = model.to(dtype).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return LoraModel(
        model=model,
        base=base,
        parameters=tuple(sorted(parameters, key=lambda item: item.name)),
        device=torch.device("cpu"),
        dtype=dtype,
    )


def random_documents(
    count: int, *, seed: int = 1, shortest: int = 4, longest: int = 17
) -> list[TokenizedDocument]:
    """Documents of unequal length; targets are a run at the end with a gap in it, as of two turns."""
    generator = np.random.default_rng(seed)
    documents: list[TokenizedDocument] = []
    for row in range(count):
        length = int(generator.integers(shortest, longest + 1))
        mask = np.zeros(length, dtype=np.bool_)
        mask[int(generator.integers(1, length)) :] = True
        if mask.sum() > 3:
            mask[-2] = False
        ids = generator.integers(0, VOCABULARY, length).astype(np.int32)
        documents.append(TokenizedDocument(document=row, input_ids=ids, target_mask=mask))
    return documents
