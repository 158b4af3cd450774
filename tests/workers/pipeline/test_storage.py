"""In what gradients are stored: by size, and in float16 without overflow and within a stated error."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atomscope_workers.pipeline.storage import (
    FLOAT32_NUMBERS,
    from_half,
    gradient_bytes,
    gradient_dtypes,
    to_half,
)


@settings(deadline=None, max_examples=100)
@given(
    power=st.integers(-110, 127),
    spread=st.integers(0, 28),
    seed=st.integers(0, 2**31),
)
def test_float16_keeps_values_of_any_size_within_its_precision(power: int, spread: int, seed: int) -> None:
    """Every value down to 2^-28 of its row's largest one is off by at most 2^-11 of itself."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.rand(4, 3, 5, generator=generator) * -spread
    values = torch.exp2(magnitude) * torch.where(torch.rand(4, 3, 5, generator=generator) < 0.5, -1.0, 1.0)
    values[:, 0, 0] = 1.0  # the largest
    values = torch.ldexp(values, torch.tensor(power))
    stored, scale = to_half(values)
    assert stored.dtype == torch.float16
    error = (from_half(stored, scale).double() - values.double()).abs()
    assert bool((error <= values.double().abs() * 2.0**-11).all())


def test_what_is_far_below_the_largest_value_is_off_by_a_share_of_that() -> None:
    values = torch.tensor([[1.0, 3.3e-10, -1.7e-13]])
    stored, scale = to_half(values)
    error = (from_half(stored, scale) - values).abs()
    assert bool((error <= 2.0**-39).all())


def test_rows_have_their_own_scales_and_nothing_is_a_row_of_zeros() -> None:
    values = torch.tensor([[3e38, -1.0], [0.0, 0.0], [1e-40, 2e-40]])
    stored, scale = to_half(values)
    assert bool(torch.isfinite(stored).all())
    found = from_half(stored, scale)
    assert found[0, 0] == pytest.approx(3e38, rel=2**-11)
    assert scale[1] == 1
    assert not found[1].any()
    assert scale[2] == 2.0**-126  # the smallest scale: below float32's normal range bits are lost anyway


def test_what_is_not_finite_stays_so() -> None:
    stored, scale = to_half(torch.tensor([[float("inf"), 1.0], [float("nan"), 1.0]]))
    assert scale.tolist() == [1.0, 1.0]
    assert torch.isinf(stored[0, 0])
    assert torch.isnan(stored[1, 0])


def test_auto_goes_by_the_numbers_there_are_and_a_dtype_that_is_asked_for_is_taken() -> None:
    parameters = 2**20
    documents = FLOAT32_NUMBERS // parameters
    for setting in ("auto", "none"):
        assert gradient_dtypes(setting, documents, parameters) == ["float32", "float16"]
        assert gradient_dtypes(setting, documents + 1, parameters) == ["float16", "float32"]
    for setting in ("float32", "bfloat16", "float16"):
        assert gradient_dtypes(setting, 10**9, parameters) == [setting]


def test_bytes_follow_from_the_dtype_and_float16_counts_its_scales() -> None:
    assert gradient_bytes("float32", 3, 100, 7) == 1200
    assert gradient_bytes("bfloat16", 3, 100, 7) == 600
    assert gradient_bytes("float16", 3, 100, 7) == 600 + 3 * 7 * 4
