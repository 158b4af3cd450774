"""Sums of outer products lose nothing, whatever dtype the rows have, and hold half of a wide matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atomscope_workers.models.precision import bfloat16_products
from atomscope_workers.pipeline import products
from atomscope_workers.pipeline.products import BLOCK, NARROW, SMALLEST, OuterSum, held_numbers

CPU = torch.device("cpu")
COLUMNS = [3, SMALLEST, 2 * NARROW + 1, 2 * BLOCK + 1]


def rows_of(columns: int, dtype: torch.dtype = torch.float32, count: int = 300) -> torch.Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(0)).to(dtype)


def summed(*batches: torch.Tensor) -> OuterSum:
    found = OuterSum.zeros(batches[0].shape[1], CPU, batches[0].dtype)
    for rows in batches:
        found.add(rows)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", COLUMNS)
def test_the_sum_is_that_of_the_rows_to_the_rounding_of_float32(dtype: torch.dtype, columns: int) -> None:
    rows = rows_of(columns, dtype)
    expected = rows.double().T @ rows.double()
    found = summed(*rows.split(70)).matrix()
    assert found.dtype == torch.float32
    assert torch.allclose(found, found.T, rtol=0, atol=1e-6 * float(expected.max()))
    # bfloat16 has a rounding of 4e-3: a product rounded to it would be far outside.
    assert torch.allclose(found.double(), expected, rtol=0, atol=3e-6 * float(expected.max()))


def test_a_sum_of_many_batches_is_as_near_as_that_of_one() -> None:
    """As many as a shard has where each document is a batch alone; they are added up in float32."""
    rows = rows_of(40, count=256 * 20)
    expected = rows.double().T @ rows.double()
    found = summed(*rows.split(20)).matrix().double()
    assert float((found - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("columns", COLUMNS)
def test_sums_of_shards_are_added_up_in_float64(columns: int) -> None:
    first, second = (summed(rows_of(columns) * scale) for scale in (1000.0, 0.01))
    total = first.double()
    total.merge(second)
    assert total.size == columns
    assert torch.equal(total.matrix(), first.matrix().double() + second.matrix().double())
    assert torch.equal(OuterSum.of(total.matrix()).matrix(), total.matrix())


@pytest.mark.parametrize(
    ("dtype", "amx", "blocks"),
    [
        (torch.float32, False, 3),
        (torch.float32, True, 3),
        (torch.bfloat16, False, 3),
        (torch.bfloat16, True, 1),
    ],
)
def test_a_cpu_takes_few_columns_at_a_time_but_where_it_multiplies_in_tiles(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, amx: bool, blocks: int
) -> None:
    """A third fewer multiplications at the width of a small model."""
    monkeypatch.setattr(products, "_has_amx", lambda: amx)
    rows = rows_of(3 * NARROW).to(dtype)
    total = OuterSum.zeros(3 * NARROW, CPU, dtype)
    total.add(rows)
    held = [block.numel() for block in total._blocks]  # pyright: ignore[reportPrivateUsage]
    assert held == [NARROW**2 * count for count in (1, 2, 3)] if blocks == 3 else held == [9 * NARROW**2]
    exact = rows.double().T @ rows.double()
    assert torch.allclose(total.matrix().double(), exact, rtol=0, atol=1e-6 * float(exact.max()))


def test_whether_there_are_tiles_is_what_torch_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"amx_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert products._has_amx()  # pyright: ignore[reportPrivateUsage]
    told.clear()
    assert not products._has_amx()  # pyright: ignore[reportPrivateUsage]


def test_of_a_wide_matrix_about_half_is_held() -> None:
    assert held_numbers(BLOCK) == BLOCK**2
    assert held_numbers(11_008) < 0.54 * 11_008**2
    assert held_numbers(2 * BLOCK + 1) == BLOCK**2 + 2 * BLOCK**2 + 2 * BLOCK + 1


@pytest.mark.parametrize(("kind", "wanted"), [("cpu", "bf16"), ("cuda", "tf32")])
def test_exact_products_ask_their_device_and_leave_others_as_precise_as_before(
    kind: str, wanted: str
) -> None:
    """Of CUDA the setting alone, which needs no GPU: nothing is multiplied there."""
    backend: Any = {"cpu": torch.backends.mkldnn, "cuda": torch.backends.cuda}[kind].matmul
    before = backend.fp32_precision
    assert before != wanted
    with bfloat16_products(torch.device(kind)):
        assert backend.fp32_precision == wanted
    assert backend.fp32_precision == before
    left = rows_of(200)
    product = left.T @ left
    summed(left.bfloat16())
    assert torch.equal(left.T @ left, product)
