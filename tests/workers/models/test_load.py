"""Base and adapter together: every tensor in its place, whatever the dtype; misfits refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from atomscope_workers.models.load import adapter_disabled, load_lora_model
from tests.fixtures.models import TinyAdapterFactory

CPU = torch.device("cpu")
IDS = torch.tensor([[1, 20, 40, 60, 80, 5, 2]])
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_parameter_equals_its_tensor_in_the_file(
    tiny_llama: Path, tiny_adapter: TinyAdapterFactory, dtype: torch.dtype
) -> None:
    folder = tiny_adapter(ALL_LINEAR, dtype=dtype)
    loaded = load_lora_model(tiny_llama, folder, dtype=torch.float32, device=CPU)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert [item.name for item in loaded.parameters] == sorted(tensors)
    for item in loaded.parameters:
        assert torch.equal(item.linear.weight, tensors[item.name].to(torch.float32))
        assert item.shape == tuple(tensors[item.name].shape)
    assert loaded.n_parameters == sum(tensor.numel() for tensor in tensors.values())


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {
            "rank_pattern": {"q_proj": 2, r"model\.layers\.1\.self_attn\.v_proj": 8},
            "alpha_pattern": {"v_proj": 32},
        },
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_the_forward_pass_equals_that_of_peft(
    tiny_llama: Path, tiny_adapter: TinyAdapterFactory, settings: dict[str, object]
) -> None:
    folder = tiny_adapter(**settings)
    loaded = load_lora_model(tiny_llama, folder, dtype=torch.float32, device=CPU)
    reference = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32), folder
    )
    assert torch.equal(logits(loaded.model), logits(reference.eval()))


def test_nothing_requires_a_gradient_and_nothing_trains(
    tiny_llama: Path, tiny_adapter: TinyAdapterFactory
) -> None:
    loaded = load_lora_model(tiny_llama, tiny_adapter(), dtype=torch.float32, device=CPU)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not any(module.training for module in loaded.model.modules())


def test_the_adapter_can_be_disabled_and_comes_back(
    tiny_llama: Path, tiny_adapter: TinyAdapterFactory
) -> None:
    loaded = load_lora_model(tiny_llama, tiny_adapter(), dtype=torch.float32, device=CPU)
    before = logits(loaded.model)
    with adapter_disabled(loaded):
        bare = logits(loaded.model)
    assert torch.equal(
        bare, logits(AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval())
    )
    assert torch.equal(before, logits(loaded.model))
    assert not torch.equal(before, bare)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_bfloat16_compute_casts_base_and_adapter(tiny_llama: Path, tiny_adapter: TinyAdapterFactory) -> None:
    loaded = load_lora_model(tiny_llama, tiny_adapter(), dtype=torch.bfloat16, device=CPU)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
