"""A step as an adapter of its own, to be loaded beside the audited one and scaled at run time.

The steered layer of strength t computes W + c (B + t dB)(A + t dA), with c the LoRA's scale. Its part that is
linear in t is

    t c (dB A + B dA) = t (c [dB  B]) [A; dA]

an adapter of twice the rank, whose effect a server multiplies by t. It leaves out the term t^2 c dB dA, which
is small beside it for a small step; `second_order` says how small.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomscope.steering.apply import Step
from atomscope.steering.layers import Layer, Pair, rounded


def delta_pair(layer: Layer, step: Step) -> Pair:
    """[A; dA] and c [dB  B]."""
    d_a, d_b = layer.step(step)
    return rounded(
        layer.module,
        np.concatenate([layer.a.astype(np.float64), d_a]),
        layer.scale * np.concatenate([d_b, layer.b.astype(np.float64)], axis=1),
    )


def second_order(layers: Sequence[Layer], step: Step) -> float | None:
    """||c dB dA|| / ||c (dB A + B dA)||, Frobenius norms over all layers; None where the step is zero."""
    left_out = kept = 0.0
    for layer in layers:
        d_a, d_b = layer.step(step)
        a, b = layer.a.astype(np.float64), layer.b.astype(np.float64)
        left_out += layer.scale**2 * _squared_norm(d_b, d_a)
        kept += layer.scale**2 * _squared_norm(np.concatenate([d_b, b], axis=1), np.concatenate([a, d_a]))
    return math.sqrt(left_out / kept) if kept > 0 else None


def _squared_norm(b: NDArray[np.float64], a: NDArray[np.float64]) -> float:
    """||B A||^2 by the Gram matrices of the small side."""
    return max(float(((b.T @ b) * (a @ a.T)).sum()), 0.0)


def delta_config(config: Mapping[str, Any], pairs: Mapping[str, Pair]) -> dict[str, Any]:
    """`adapter_config.json` of the delta: the adapter's own, but for rank and alpha.

    The layers' scales are in the matrices already, so alpha is the rank everywhere. Servers that know neither
    patterns nor rank-stabilised LoRA are right too.
    """
    rank = max(pair.rank for pair in pairs.values())
    others = {module: pair.rank for module, pair in sorted(pairs.items()) if pair.rank != rank}
    # Keys are patterns, and matched against the end of a layer's path too: `^` ties them to all of it.
    patterns = {f"^{re.escape(module)}": value for module, value in others.items()}
    return {
        **config,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
