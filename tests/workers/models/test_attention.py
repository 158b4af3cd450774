"""The attention that a pass takes: by dtype and width, and as it was afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from atomscope_workers.models.attention import SHORT, fastest_attention
from atomscope_workers.models.lora import LoraModel

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def lora() -> LoraModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=50, attn_implementation="sdpa", **sizes)).bfloat16().eval()
    return LoraModel(model=base, base=base, parameters=(), device=CPU, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("device", "dtype", "width", "expected"),
    [
        (CPU, torch.bfloat16, SHORT, "eager"),
        (CPU, torch.bfloat16, SHORT + 1, "sdpa"),
        (CPU, torch.float32, SHORT, "sdpa"),
        (CUDA, torch.bfloat16, SHORT, "sdpa"),
    ],
)
def test_plain_products_serve_short_batches_of_bfloat16_on_a_cpu(
    lora: LoraModel, device: torch.device, dtype: torch.dtype, width: int, expected: str
) -> None:
    with fastest_attention(replace(lora, device=device, dtype=dtype), width):
        assert lora.base.config._attn_implementation == expected
    assert lora.base.config._attn_implementation == "sdpa"


def test_a_pass_that_fails_leaves_the_attention_as_it_was(lora: LoraModel) -> None:
    with pytest.raises(RuntimeError, match="broken"), fastest_attention(lora, SHORT):
        raise RuntimeError("broken")
    assert lora.base.config._attn_implementation == "sdpa"


def test_an_attention_chosen_for_a_model_is_kept(lora: LoraModel) -> None:
    lora.base.set_attn_implementation("eager")
    try:
        with fastest_attention(lora, SHORT + 1):
            assert lora.base.config._attn_implementation == "eager"
        assert lora.base.config._attn_implementation == "eager"
    finally:
        lora.base.set_attn_implementation("sdpa")


def test_both_attentions_give_the_same_logits_up_to_rounding(lora: LoraModel) -> None:
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        usual = lora.base(input_ids=ids).logits.float()
        with fastest_attention(lora, 12):
            other = lora.base(input_ids=ids).logits.float()
    assert torch.allclose(usual, other, atol=2**-8 * float(usual.abs().max()) * 4)
