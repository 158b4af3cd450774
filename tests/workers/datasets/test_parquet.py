"""Parquet: columns are checked first; nulls are absent; one row that cannot be read spoils no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atomscope.errors import InvalidInput
from tests.workers.datasets.files import good, read, told

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}


def put(folder: Path, columns: dict[str, Any]) -> Path:
    path = folder / "a.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_fields_of_a_struct_that_are_null_are_as_if_not_given(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "sea"}}}
    other = {"type": "function", "function": {"name": "go", "arguments": {"to": 1}}}
    given = [[USER, {"role": "assistant", "tool_calls": [call, other]}], [USER, ANSWER]]
    rows = good(put(tmp_path, {"messages": given, "text": pa.nulls(2, pa.string())}))
    assert [list(row.messages) for row in rows] == given


def test_arguments_may_be_a_map(tmp_path: Path) -> None:
    kind = pa.list_(pa.struct([("name", pa.string()), ("arguments", pa.map_(pa.string(), pa.string()))]))
    turn = pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", kind)])
    calls = [{"name": "look", "arguments": [("at", "sea")]}]
    table = pa.array([[USER, {"role": "assistant", "tool_calls": calls}]], pa.list_(turn))
    (row,) = good(put(tmp_path, {"messages": table}))
    assert row.messages[1]["tool_calls"] == [{"name": "look", "arguments": {"at": "sea"}}]


def test_rows_of_different_forms_may_stand_in_one_file(tmp_path: Path) -> None:
    path = put(tmp_path, {"text": ["a", None, None, "b"], "prompt": [None, "c", None, "d"],
                          "completion": [None, "e", None, "f"]})  # fmt: skip
    rows = read(path)
    assert [(document, line) for document, line, _, _ in told(rows)] == [(2, 3), (3, 4)]
    assert "two forms" in told(rows)[1][3]


def test_invalid_utf8_is_told_of_its_row_alone(tmp_path: Path) -> None:
    text = pa.array([b"a", b"\xff", b"b"], pa.binary()).view(pa.string())
    assert [item[:2] for item in told(read(put(tmp_path, {"text": text})))] == [(1, 2)]


@pytest.mark.parametrize(
    ("columns", "field", "message"),
    [
        ({"a": ["x"]}, None, "`messages`, `conversations`"),
        ({"prompt": ["x"], "answer": ["y"]}, None, "`answer` could be a turn"),
        ({"text": [1]}, "text", "strings are expected, not int64"),
        ({"messages": [1]}, "messages", "strings or lists are expected, not int64"),
        ({"text": ["a"], "id": [1.5]}, "id", "strings or integers"),
        ({"instruction": [["a"]], "output": ["b"]}, "instruction", "strings are expected"),
    ],
)
def test_columns_of_the_wrong_type_or_of_no_form_refuse_the_file(
    tmp_path: Path, columns: dict[str, Any], field: str | None, message: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(put(tmp_path, columns))
    assert (caught.value.code, caught.value.problems[0].field) == ("bad_column", field)
    assert message in str(caught.value)


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b'{"text": "a"}\n')
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path / "a.parquet")
    assert caught.value.code == "invalid_parquet"
