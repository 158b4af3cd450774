"""In what gradients are stored: the choice by size, the bytes that follow, and float16 with its scales.

float16 has 11 significant bits and a narrow range. Each document's gradient of a parameter is therefore
stored over a power of two that brings its largest value to between 2^14 and 2^15: nothing overflows, dividing
rounds nothing, and a value is off by at most 2^-11 of itself down to 2^-28 of the largest one, below which by
at most 2^-39 of that. bfloat16 has the range of float32 and 8 bits: a value is off by at most 2^-8 of itself.
"""

from __future__ import annotations

from typing import Literal

import torch

from atomscope.types.spec import StoredGradients

GradientDtype = Literal["float32", "bfloat16", "float16"]

FLOAT32_NUMBERS = 2**31
"""Numbers, documents times parameters, up to which `auto` is float32: 8 GiB."""

DTYPES: dict[GradientDtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_TOP = 15
"""The largest value of a scaled row is below 2 to this power; float16 ends at 65,504."""
_LOWEST = -126
"""Exponent of the smallest normal float32, and so of the smallest scale."""


def gradient_dtypes(setting: StoredGradients, documents: int, parameters: int) -> list[GradientDtype]:
    """Dtypes in which the audit's shards may be stored, the one that it asks for first.

    `auto`, and what is not kept while the audit runs, are float32 up to `FLOAT32_NUMBERS` and float16 past
    that; the other of the two comes second.
    """
    if setting not in ("auto", "sketch", "none"):
        return [setting]
    small = documents * parameters <= FLOAT32_NUMBERS
    return ["float32", "float16"] if small else ["float16", "float32"]


def gradient_bytes(dtype: GradientDtype, documents: int, parameters: int, modules: int) -> int:
    """Bytes of the gradients of so many documents, scales included, but for headers."""
    scales = 4 * modules if dtype == "float16" else 0
    return documents * (DTYPES[dtype].itemsize * parameters + scales)


def to_half(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float16 rows of float32 `values` (n, ...), and the float32 scale (n,) that each is to be multiplied by.

    A row that is not finite has scale 1 and stays not finite.
    """
    largest = values.flatten(1).abs().amax(1)
    exponent = torch.frexp(largest).exponent - _TOP
    usable = torch.isfinite(largest) & (largest > 0)
    exponent = torch.where(usable, exponent.clamp_min(_LOWEST), 0)
    scale = torch.ldexp(torch.ones_like(largest), exponent)
    return (values / scale.view(-1, *[1] * (values.ndim - 1))).half(), scale


def from_half(rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """float32 (n, ...) of float16 rows and their scales (n,)."""
    return rows.float() * scale.view(-1, *[1] * (rows.ndim - 1))
