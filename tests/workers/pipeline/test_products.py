"""Sums of outer products lose nothing, whatever dtype the rows have."""

from __future__ import annotations

import pytest
import torch

from atomscope_workers.pipeline.products import BLOCK, SMALLEST, outer_sum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [3, SMALLEST, 2 * SMALLEST + 1, 2 * BLOCK + 1])
def test_the_sum_is_that_of_the_rows_to_the_rounding_of_float32(dtype: torch.dtype, columns: int) -> None:
    rows = torch.randn(300, columns, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = rows.double().T @ rows.double()
    found = outer_sum(rows)
    assert found.dtype == torch.float32
    assert torch.allclose(found, found.T, rtol=0, atol=1e-6 * float(expected.max()))
    # bfloat16 has a rounding of 4e-3: a product rounded to it would be far outside.
    assert torch.allclose(found.double(), expected, rtol=0, atol=3e-6 * float(expected.max()))


def test_other_products_are_as_precise_as_before() -> None:
    left = torch.randn(200, 200, generator=torch.Generator().manual_seed(1))
    before = left @ left
    outer_sum(left.bfloat16())
    assert torch.equal(left @ left, before)
