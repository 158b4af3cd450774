"""The scale of a LoRA, against PEFT's own rules."""

from __future__ import annotations

import math
from typing import Any

import pytest
from peft.utils.other import get_pattern_key

from atomscope.errors import SteeringError
from atomscope.steering.scaling import rank_and_alpha, scaling

MODULES = [
    f"model.layers.{layer}.{part}"
    for layer in (0, 1, 10)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj")
]
PATTERNS: list[dict[str, int]] = [
    {},
    {"q_proj": 2, "model.layers.0.self_attn.q_proj": 4},
    {r"layers\.\d+\.mlp\.gate_proj": 3, "gate_proj": 5},
    {"^model.layers.1.self_attn.v_proj": 6, "proj": 7},
]


@pytest.mark.parametrize("ranks", PATTERNS)
@pytest.mark.parametrize("alphas", PATTERNS)
def test_rank_and_alpha_are_those_that_peft_gives(ranks: dict[str, int], alphas: dict[str, int]) -> None:
    config = {"r": 8, "lora_alpha": 16, "rank_pattern": ranks, "alpha_pattern": alphas}
    for module in MODULES:
        assert rank_and_alpha(config, module) == (
            ranks.get(get_pattern_key(list(ranks), module), 8),
            alphas.get(get_pattern_key(list(alphas), module), 16),
        )


@pytest.mark.parametrize(("rslora", "scale"), [(None, 2.0), (False, 2.0), (True, 8 / math.sqrt(4))])
def test_the_scale_is_alpha_by_the_rank_or_its_root(rslora: bool | None, scale: float) -> None:
    assert scaling({"r": 4, "lora_alpha": 8, "use_rslora": rslora}, "q_proj", 4) == scale


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"lora_alpha": 8}, "r: a number"),
        ({"r": True, "lora_alpha": 8}, "r: a number"),
        ({"r": 4}, "lora_alpha: a number"),
        ({"r": 4, "lora_alpha": "8"}, "lora_alpha: a number"),
        ({"r": 8, "lora_alpha": 8}, "rank of q_proj is 8, its tensors have 4"),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"q_proj": None}}, "alpha of q_proj"),
        ({"r": 4, "lora_alpha": 8, "rank_pattern": ["q"]}, "rank_pattern"),
        ({"r": 4, "lora_alpha": 8, "rank_pattern": {"(.+)+$": 3}}, "rank_pattern"),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {f"q{i}": 1 for i in range(1025)}}, "alpha_pattern"),
    ],
)
def test_a_config_that_does_not_say_the_scale_is_refused_by_field(config: dict[str, Any], field: str) -> None:
    with pytest.raises(SteeringError, match=field):
        scaling(config, "q_proj", 4)
