"""Tokens of documents, from the file in which `validate` hands them on."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from atomscope_workers.datasets.documents import (
    TokenizedDocument,
    load_some,
    load_tokens,
    save_tokens,
    token_counts,
)

LENGTHS = {2: 3, 5: 1, 9: 300}


def test_counts_are_those_of_the_tokens_that_were_written(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    documents = [
        TokenizedDocument(row, random.integers(0, 9, length).astype(np.int32), random.random(length) < 0.9)
        for row, length in LENGTHS.items()
    ]
    save_tokens(documents, tmp_path / "tokens.safetensors")
    read = load_tokens(tmp_path / "tokens.safetensors")
    for item in documents:
        np.testing.assert_array_equal(read[item.document].input_ids, item.input_ids)
        np.testing.assert_array_equal(read[item.document].target_mask, item.target_mask)
    assert token_counts(tmp_path / "tokens.safetensors") == {
        item.document: (len(item.input_ids), int(item.target_mask.sum()), item.read) for item in documents
    }
    some = load_some(tmp_path / "tokens.safetensors", [9, 2])
    assert [item.document for item in some] == [9, 2]
    for item in some:
        np.testing.assert_array_equal(item.input_ids, read[item.document].input_ids)
        np.testing.assert_array_equal(item.target_mask, read[item.document].target_mask)
        assert item.target_mask.dtype == np.bool_
    assert int(documents[2].target_mask.sum()) > 255  # more than a byte counts


@pytest.mark.parametrize(
    ("targets", "least", "read"),
    [
        ([0, 1, 1], 0, 2),  # the last target is predicted from the token before it
        ([0, 1, 0, 0], 0, 1),
        ([0, 1, 0, 0], 3, 3),
        ([0, 1, 0, 1, 0], 0, 3),
        ([0, 1, 0, 1, 0], 2, 3),
        ([0, 0], 0, 0),
        ([0, 0], 2, 0),
    ],
)
def test_what_is_read_ends_before_the_last_target(
    targets: list[int], least: int, read: int, tmp_path: Path
) -> None:
    document = TokenizedDocument(
        3, np.arange(len(targets), dtype=np.int32), np.array(targets, dtype=np.bool_), least
    )
    assert document.read == read
    save_tokens([document], tmp_path / "tokens.safetensors")
    assert token_counts(tmp_path / "tokens.safetensors")[3].read == read
    assert load_tokens(tmp_path / "tokens.safetensors")[3].read == read
    assert load_some(tmp_path / "tokens.safetensors", [3])[0].read == read


def test_of_no_tokens_none_are_read() -> None:
    assert TokenizedDocument(0, np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.bool_)).read == 0


def test_of_a_bundle_from_before_anything_was_left_out_all_tokens_are_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    mask = np.array([0, 1, 0, 0], dtype=np.bool_)
    save_tokens([TokenizedDocument(3, np.arange(4, dtype=np.int32), mask)], path)
    arrays = load_file(path)
    del arrays["least"]
    save_file(arrays, path)
    assert load_tokens(path)[3].read == load_some(path, [3])[0].read == token_counts(path)[3].read == 4


def test_counting_holds_a_byte_a_token_and_little_more(tmp_path: Path) -> None:
    tokens = 3_000_000
    mask = np.ones(tokens, dtype=np.bool_)
    document = TokenizedDocument(0, np.zeros(tokens, dtype=np.int32), mask)
    save_tokens([document], tmp_path / "tokens.safetensors")
    tracemalloc.start()
    try:
        assert token_counts(tmp_path / "tokens.safetensors") == {0: (tokens, tokens, tokens - 1)}
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * tokens
