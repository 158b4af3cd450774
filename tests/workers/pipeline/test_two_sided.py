"""Matrices multiplied from both sides are what multiplying each alone gives, whichever side is larger."""

from __future__ import annotations

import pytest
import torch

from atomscope_workers.pipeline.two_sided import two_sided


@pytest.mark.parametrize(("rows", "columns"), [(4, 30), (30, 4), (7, 7), (1, 9), (9, 1)])
@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_each_is_the_product_of_the_three_matrices(rows: int, columns: int, count: int, kept: float) -> None:
    """Within 1e-12 in float64, with some columns of either side cut away too."""
    generator = torch.Generator().manual_seed(rows * columns)
    left = torch.randn(rows, max(1, int(rows * kept)), generator=generator, dtype=torch.float64)
    right = torch.randn(columns, max(1, int(columns * kept)), generator=generator, dtype=torch.float64)
    matrices = torch.randn(count, rows, columns, generator=generator, dtype=torch.float64)
    found = two_sided(left, matrices, right)
    assert found.shape == (count, left.shape[1], right.shape[1])
    for given, turned in zip(matrices, found, strict=True):
        torch.testing.assert_close(turned, left.T @ given @ right, atol=1e-12, rtol=1e-12)
