"""The attention that a pass takes: our own on a CPU, and as it was afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM, LlamaConfig, LlamaForCausalLM

from atomscope_workers.models.attention import fastest_attention
from atomscope_workers.models.causal_attention import CAUSAL
from atomscope_workers.models.lora import LoraModel

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def lora() -> LoraModel:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=50, intermediate_size=32, attn_implementation="sdpa", **SIZES)
    base = LlamaForCausalLM(config).bfloat16().eval()
    return LoraModel(model=base, base=base, parameters=(), device=CPU, dtype=torch.bfloat16)


@pytest.mark.parametrize(("device", "expected"), [(CPU, CAUSAL), (CUDA, "sdpa")])
def test_our_own_attention_serves_passes_on_a_cpu(
    lora: LoraModel, device: torch.device, expected: str
) -> None:
    with fastest_attention(replace(lora, device=device)):
        assert lora.base.config._attn_implementation == expected
    assert lora.base.config._attn_implementation == "sdpa"


def test_a_pass_that_fails_leaves_the_attention_as_it_was(lora: LoraModel) -> None:
    with pytest.raises(RuntimeError, match="broken"), fastest_attention(lora):
        raise RuntimeError("broken")
    assert lora.base.config._attn_implementation == "sdpa"


def test_an_attention_chosen_for_a_model_is_kept(lora: LoraModel) -> None:
    lora.base.set_attn_implementation("eager")
    try:
        with fastest_attention(lora):
            assert lora.base.config._attn_implementation == "eager"
        assert lora.base.config._attn_implementation == "eager"
    finally:
        lora.base.set_attn_implementation("sdpa")


def test_a_model_that_brings_its_own_attention_is_asked_for_no_other(
    lora: LoraModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers refuses it by itself, with a warning in the log: of every batch."""
    base = FalconForCausalLM(FalconConfig(vocab_size=50, attn_implementation="sdpa", **SIZES)).eval()
    asked: list[str] = []
    monkeypatch.setattr(base, "set_attn_implementation", asked.append)
    with fastest_attention(replace(lora, model=base, base=base)):
        pass
    assert not asked


def test_both_attentions_give_the_same_logits_up_to_rounding(lora: LoraModel) -> None:
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        usual = lora.base(input_ids=ids).logits.float()
        with fastest_attention(lora):
            other = lora.base(input_ids=ids).logits.float()
    assert torch.allclose(usual, other, atol=2**-8 * float(usual.abs().max()) * 4)
