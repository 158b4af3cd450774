"""Names of LoRA tensors: what is read in each, and that the name PEFT loads follows from it."""

from __future__ import annotations

import pytest

from atomscope.steering.names import LoraName, parse_lora_name, peft_name

LAYER = "model.layers.0.self_attn.q_proj"
PLAIN = f"base_model.model.{LAYER}.lora_A.weight"


@pytest.mark.parametrize(
    "name",
    [
        PLAIN,
        f"base_model.model.{LAYER}.lora_A.default.weight",
        f"base_model.model.{LAYER}.lora_A.sft-run_2.weight",
        f"_orig_mod.{PLAIN}",
        f"base_model.model._orig_mod.{LAYER}.lora_A.weight",
        "base_model.model.model.layers.0._orig_mod.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0._checkpoint_wrapped_module.self_attn.q_proj.lora_A.weight",
        f"_fsdp_wrapped_module.{PLAIN}",
        "base_model.model.model.layers.0._fpw_module.self_attn.q_proj.lora_A.default.weight",
        f"module.{PLAIN}",
        f"module.module.{PLAIN}",
        f"base_model.model.module.{LAYER}.lora_A.weight",
        f"{LAYER}.lora_A.weight",
        f"module._orig_mod.{LAYER}.lora_A.default.weight",
    ],
)
def test_what_wrappers_left_is_taken_out_and_peft_loads_the_rest(name: str) -> None:
    found = parse_lora_name(name)
    assert found is not None
    assert (found.module, found.side) == (LAYER, "A")
    assert peft_name(name) == PLAIN
    assert peft_name(PLAIN) == PLAIN


def test_the_adapters_name_and_the_side_are_read() -> None:
    name = f"base_model.model.{LAYER}.lora_B.stage2.weight"
    assert parse_lora_name(name) == LoraName(LAYER, "B", "stage2")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "weight",
        "lora_A.weight",
        "base_model.model.lora_A.weight",
        f"base_model.model.{LAYER}.weight",
        f"base_model.model.{LAYER}.lora_A.bias",
        f"base_model.model.{LAYER}.lora_A.a.b.weight",
        f"base_model.model.{LAYER}.lora_magnitude_vector",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        f"base_model.model.{LAYER}.base_layer.lora_A.weight",
        f"base_model.model.{LAYER}.base_layer.weight",
        f"base_model.model.base_model.model.{LAYER}.lora_A.weight",
        f"base_model.model.{LAYER}.lora_A.lora_B.weight",
        "base_model.model.lm_head.modules_to_save.lora_A.weight",
        f"base_model.model..{LAYER}.lora_A.weight",
        f"base_model.model.{LAYER}/../x.lora_A.weight",
        f"base_model.model.{LAYER}.lora_A.de fault.weight",
    ],
)
def test_every_other_name_is_left_alone(name: str) -> None:
    assert parse_lora_name(name) is None
    assert peft_name(name) == name
