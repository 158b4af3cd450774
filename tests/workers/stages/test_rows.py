"""Rows are read one by one from the file that `validate` wrote."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import pytest

from atomscope.store import StoreError
from atomscope_workers.pipeline.keywords import distinctive_keywords
from atomscope_workers.pipeline.sides import sides
from atomscope_workers.pipeline.text import text_span
from atomscope_workers.stages.rows import StoredRow, StoredRows

DOCUMENTS = [0, 3, 4, 900]


def row(document: int) -> StoredRow:
    return StoredRow(
        document=document,
        id=f"id-{document}",
        messages=[{"role": "user", "content": "wörd\n\U0001f600" * document}],
    )


def written(path: Path, rows: list[StoredRow]) -> StoredRows:
    path.write_bytes(b"".join(msgspec.json.encode(item) + b"\n" for item in rows))
    return StoredRows(path)


def test_every_row_is_found_by_its_number_in_any_order(tmp_path: Path) -> None:
    rows = written(tmp_path / "rows.jsonl", [row(document) for document in DOCUMENTS])
    assert list(rows) == DOCUMENTS
    assert len(rows) == len(DOCUMENTS)
    for document in reversed(DOCUMENTS):
        assert rows[document] == row(document)
    assert list(rows.values()) == [row(document) for document in DOCUMENTS]


@pytest.mark.parametrize("absent", [-1, 1, 5, 901])
def test_a_row_that_is_not_there_is_a_key_error(tmp_path: Path, absent: int) -> None:
    rows = written(tmp_path / "rows.jsonl", [row(document) for document in DOCUMENTS])
    assert absent not in rows
    with pytest.raises(KeyError):
        rows[absent]


def test_a_damaged_row_is_not_taken_for_one_without_words(tmp_path: Path) -> None:
    """scikit-learn says with a `ValueError` that there are none."""
    rows = [row(document) for document in range(1, 9)]
    written(tmp_path / "rows.jsonl", rows)
    data = (tmp_path / "rows.jsonl").read_bytes()
    place = data.index("wörd".encode(), data.index(b"id-5"))
    (tmp_path / "rows.jsonl").write_bytes(data[: place + 1] + b"\xff" + data[place + 2 :])
    damaged = StoredRows(tmp_path / "rows.jsonl")
    assert damaged[4] == row(4)
    with pytest.raises(StoreError, match="document 5"):
        distinctive_keywords((sides(item.messages) for item in damaged.values()), [np.arange(3)], 3)
    with pytest.raises(StoreError, match="document 5"):
        text_span(
            (item.messages[0]["content"] for item in damaged.values()), exact_documents=9, columns=9, seed=0
        )


def test_rows_that_do_not_rise_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 3 comes after row 3"):
        written(tmp_path / "rows.jsonl", [row(3), row(3)])


def test_a_file_without_rows_has_none(tmp_path: Path) -> None:
    assert list(written(tmp_path / "rows.jsonl", [])) == []


def test_what_is_held_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    messages = [{"role": "user", "content": "x" * 10_000}]
    rows = [StoredRow(document=number, id="", messages=messages) for number in range(300)]
    path.write_bytes(b"".join(msgspec.json.encode(item) + b"\n" for item in rows))
    tracemalloc.start()
    try:
        read = StoredRows(path)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(read) == 300
    assert held < 20_000  # of 3 MB
