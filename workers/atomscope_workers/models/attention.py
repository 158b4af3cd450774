"""Which attention runs a model, and which one its gradient passes take."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from transformers import PretrainedConfig

from atomscope_workers.models.causal_attention import CAUSAL
from atomscope_workers.models.lora import LoraModel


def attention_of(config: PretrainedConfig) -> str:
    """Which attention of transformers runs a model: `sdpa`, or `eager` where scores are soft-capped.

    The fused kernels of `sdpa` have no soft cap: transformers refuses it, and has ignored it before.
    """
    capped = config.model_type == "gemma2" or getattr(config, "attn_logit_softcapping", None) is not None
    return "eager" if capped else "sdpa"


@contextmanager
def fastest_attention(lora: LoraModel) -> Generator[None]:
    """Within it, forward passes over documents padded on the right take the fastest attention there is.

    On a CPU that is our own (`causal_attention`), for every model that takes attention from outside. A pass
    takes the same one in every worker, whatever it ran before.
    """
    base = lora.base
    usual = base.config._attn_implementation  # pyright: ignore[reportPrivateUsage]
    outside: bool = base._supports_attention_backend  # pyright: ignore[reportPrivateUsage]
    if usual != "sdpa" or lora.device.type != "cpu" or not outside:
        yield
        return
    base.set_attn_implementation(CAUSAL)
    try:
        yield
    finally:
        base.set_attn_implementation(usual)
