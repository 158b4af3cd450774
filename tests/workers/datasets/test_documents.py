"""Tokens of documents, from the file in which `validate` hands them on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from atomscope_workers.datasets.documents import TokenizedDocument, load_tokens, save_tokens, token_counts

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
        item.document: (len(item.input_ids), int(item.target_mask.sum())) for item in documents
    }
    assert int(documents[2].target_mask.sum()) > 255  # more than a byte counts
