"""`sketch_columns: auto` is as wide as a bounded memory allows; a number is what it says."""

from __future__ import annotations

from typing import Literal

import pytest

from atomscope.types.spec import AuditConfig
from atomscope_workers.stages.sizes import shapes_of
from atomscope_workers.stages.sketch_columns import NUMBERS, raw_columns, whitened_columns


@pytest.mark.parametrize(
    ("documents", "columns"),
    [
        (1, 16_384),
        (10_001, 16_384),
        (32_768, 16_384),
        (32_769, 8192),
        (65_536, 8192),
        (65_537, 4096),
        (1_000_000, 4096),
        (NUMBERS + 1, 4096),
    ],
)
def test_auto_narrows_as_documents_grow(documents: int, columns: int) -> None:
    assert whitened_columns(AuditConfig(), documents) == columns
    assert columns == 4096 or documents * columns <= NUMBERS
    assert raw_columns(AuditConfig()) == 4096


def test_a_number_is_that_of_both_sketches_whatever_the_documents() -> None:
    config = AuditConfig(sketch_columns=300)
    assert {whitened_columns(config, documents) for documents in (1, 10**6)} == {300}
    assert raw_columns(config) == 300


def test_estimates_count_the_columns_of_each_sketch() -> None:
    shapes = shapes_of(AuditConfig(), 20_000, {"a": (4, 8)}, {"a": "a"}, "float32")
    assert (shapes.sketch_columns, shapes.raw_columns) == (16_384, 4096)


@pytest.mark.parametrize(
    ("asked", "columns", "documents", "found"),
    [(2048, "auto", 20_000, 2048), (9000, 4096, 20_000, 4096), (2048, "auto", 900, 900)],
)
def test_directions_are_as_many_as_were_asked_for_unless_columns_or_documents_are_fewer(
    asked: int, columns: int | Literal["auto"], documents: int, found: int
) -> None:
    config = AuditConfig(directions=asked, sketch_columns=columns, exact_documents=1)
    assert shapes_of(config, documents, {"a": (4, 8)}, {"a": "a"}, "float32").whitened == found
