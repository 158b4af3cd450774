"""`.json`: a list, a list within an object, or objects a line; bounded, and told where it is broken."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atomscope.errors import InvalidInput
from atomscope_workers.datasets import json_stream
from atomscope_workers.datasets.json_stream import JsonEnds, JsonStream
from atomscope_workers.datasets.reading import read_rows
from tests.workers.datasets.files import good, read, told

A, B = '{"text": "a"}', '{"text": "b]}"}'


def contents(path: Path) -> list[str]:
    return [row.messages[0]["content"] for row in good(path)]


@pytest.mark.parametrize(
    "content",
    [
        f"[{A},{B}]",
        f"\ufeff [\n {A} ,\r\n\t{B}\n]\n",
        f'{{"data": [{A}, {B}]}}',
        f'{{"version": 1, "meta": {{"data": [1], "x": "]"}}, "train": [{A}, {B}], "n": [2]}}',
        f'{{"data": "none", "rows": [{A}, {B}]}}',
        f"{A}\n{B}\n",
        f"\ufeff\n{A}\n\n{B}",
    ],
)
def test_each_shape_of_file_gives_its_rows(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    assert contents(path) == ["a", "b]}"]


@pytest.mark.parametrize("content", ["[]", " [ ] ", '{"data": []}'])
def test_no_rows_are_no_fault(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    assert contents(tmp_path / "a.json") == []


@pytest.mark.parametrize(
    ("content", "rows", "message"),
    [
        ("", 0, "a list of objects"),
        ("3", 0, "a list of objects"),
        (f"[{A}", 1, "behind row 1: the file ends within a value"),
        (f"[{A},", 1, "behind row 1: the file ends within a value"),
        (f'[{A}, {{"text": "b', 1, "behind row 1: the file ends within a value"),
        (f"[{A}, {B[:-1]}\\", 1, "behind row 1: the file ends within a value"),
        ('{"data', 0, "the file ends within a value"),
        ('{"data":', 0, "the file ends within a value"),
        ('{"meta": [1], ', 0, "the file ends within a value"),
        (f"[{A}, ]", 1, "behind row 1: a row is expected between commas"),
        (f"[,{A}]", 0, "a row is expected between commas"),
        (f"[{A} {B}]", 1, "behind row 1: a comma is expected between rows"),
        (f"[{A}] [{B}]", 1, "more follows it"),
        (f'{{"data": [{A}], "train": [{B}]}}', 1, "there are `data` and `train`"),
        (f'{{"data": [{A}], "data": [{B}]}}', 1, "there are `data` and `data`"),
        ('{"data": {"text": "a"}}', 0, "a list of them under `data`, `train`, `rows`, `examples`"),
        ('{"items": []}', 0, "a list of them under `data`"),
        ('{"data": [],}', 0, "the name of a field"),
        ("{data: []}", 0, "the name of a field"),
        ('{"data" []}', 0, "a colon is expected"),
        ('{"data": }', 0, "the value of `data` is expected"),
        ('{"data": [] "x": 1}', 0, "a comma is expected between fields"),
        ('{"label": 1}\n{"text": "b"}', 0, "a list of them under"),
    ],
)
def test_a_broken_file_is_refused_where_rows_cannot_be_told_apart(
    tmp_path: Path, content: str, rows: int, message: str
) -> None:
    (tmp_path / "a.json").write_text(content)
    found = read_rows(tmp_path / "a.json", file="a.json", max_rows=10)
    assert len([next(found) for _ in range(rows)]) == rows
    with pytest.raises(InvalidInput) as caught:
        list(found)
    assert caught.value.code == "invalid_json"
    assert caught.value.problems[0].file == "a.json"
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": NaN}', "no NaN"),
        ('{"text": "a", "text": "b"}', "given twice"),
        ('{"text" "a"}', "a JSON object is expected (Expecting ':' delimiter, column 9)"),
        ('{\n"text": "a",\n}', "its line 3"),
        ('{"text": "\udcff"}', "byte 11 of the row is not"),
        ("[" * 5000 + "]" * 5000, "less depth"),
        ('{"text": "' + "x" * 20_000 + '"}', "a row of at most 15000 bytes"),
        ("3", "an object is expected"),
        ("NaN", "no NaN"),
        ('"text"', "an object is expected"),
        ("null", "an object is expected"),
    ],
)
def test_a_malformed_row_is_told_by_its_number_and_spoils_no_other(
    tmp_path: Path, row: str, message: str
) -> None:
    (tmp_path / "a.json").write_text(f"[{A},\n\n{row},\n{B}]", errors="surrogateescape")
    rows = read(tmp_path / "a.json", limit=15_000)
    ((document, line, _, what),) = told(rows)
    assert (document, line) == (1, 2)
    assert message in what
    assert [item.document for item in rows] == [0, 1, 2]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.text('\\"[]{},', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('\\"ab}', max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    values=st.lists(JSON, max_size=4),
    block=st.sampled_from([1, 2, 3, 7, 64]),
    indent=st.sampled_from([None, 1]),
)
def test_values_are_found_whole_wherever_blocks_end(
    values: list[object], block: int, indent: int | None
) -> None:
    text = json.dumps(values, indent=indent).encode()
    before = json_stream._BLOCK  # pyright: ignore[reportPrivateUsage]
    json_stream._BLOCK = block  # pyright: ignore[reportPrivateUsage]
    try:
        assert JsonStream(io.BytesIO(text)).value(len(text)) == text
        assert JsonStream(io.BytesIO(text)).value(len(text) - 1) is None
        stream = JsonStream(io.BytesIO(text))
        assert stream.take() == b"["
        for value in values:
            assert json.loads(stream.value(10_000) or b"") == value
            assert stream.take() in (b",", b"]")
        with pytest.raises(JsonEnds):
            JsonStream(io.BytesIO(text[:-1])).value(0)
    finally:
        json_stream._BLOCK = before  # pyright: ignore[reportPrivateUsage]


def test_a_large_file_and_a_row_beyond_the_limit_are_never_held_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as sink:
        sink.write(b"[")
        for _ in range(300):
            sink.write(b'{"text": "' + b"x" * 100_000 + b'"},\n')
        sink.write(b'{"text": "' + b"\\n" * 8_000_000 + b'"}]')
    tracemalloc.start()
    try:
        rows = sum(1 for _ in read_rows(path, file="a", max_rows=1000, max_row_bytes=2**20))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 301
    assert peak < 12 * 2**20
