"""Which of transformers' attention kernels runs a model, and which runs it fastest."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from transformers import PretrainedConfig

from atomscope_workers.models.lora import LoraModel

SHORT = 128
"""Tokens, padding included, up to which a CPU's plain matrix products pass its fused kernel in bfloat16.

On longer batches the scores that plain products write out cost more than what they save.
"""


def attention_of(config: PretrainedConfig) -> str:
    """Which attention of transformers runs a model: `sdpa`, or `eager` where scores are soft-capped.

    The fused kernels of `sdpa` have no soft cap: transformers refuses it, and has ignored it before.
    """
    capped = config.model_type == "gemma2" or getattr(config, "attn_logit_softcapping", None) is not None
    return "eager" if capped else "sdpa"


@contextmanager
def fastest_attention(lora: LoraModel, width: int) -> Generator[None]:
    """Within it, a forward pass of batches `width` tokens wide takes the fastest attention of its dtype.

    A pass takes the same one in every worker, whatever it ran before.
    """
    base = lora.base
    usual = base.config._attn_implementation  # pyright: ignore[reportPrivateUsage]
    if usual != "sdpa" or lora.device.type != "cpu" or lora.dtype != torch.bfloat16 or width > SHORT:
        yield
        return
    base.set_attn_implementation("eager")
    try:
        yield
    finally:
        base.set_attn_implementation(usual)
