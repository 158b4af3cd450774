"""JSONL and plain text: a row a line, whatever becomes of its neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workers.datasets.files import good, read, told

BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_blank_lines_count_as_lines_and_not_as_rows(tmp_path: Path, mark: bytes, end: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(mark + end.join([b'{"text": "a"}', b"", b" \t", b'{"text": "b"}']))
    (tmp_path / "a.txt").write_bytes(mark + end.join([b"a", b"", b" \t", b"b"]))
    for name in ("a.jsonl", "a.txt"):
        rows = good(tmp_path / name)
        assert [(row.line, row.id, row.messages[0]["content"]) for row in rows] == [
            (1, "row-0", "a"),
            (4, "row-1", "b"),
        ]


def test_a_line_of_text_keeps_all_but_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(" \u2028x\u0085\ty\r \r\n{}\n".encode())
    assert [row.messages for row in good(tmp_path / "a.txt")] == [
        ({"role": "text", "content": " \u2028x\u0085\ty\r "},),
        ({"role": "text", "content": "{}"},),
    ]


@pytest.mark.parametrize(
    ("line", "field", "message"),
    [
        (b'{"text": "a"', None, "a JSON object is expected (Expecting ',' delimiter, column 13)"),
        (b'{"text": NaN}', None, "JSON is expected, which has no NaN"),
        (b'{"text": -Infinity}', None, "which has no -Infinity"),
        (b'{"text": "a", "text": "b"}', "text", "given twice"),
        (b'{"text": "\xff"}', None, "UTF-8 is expected; byte 11 of the row is not"),
        (b"[" * 100_000, None, "JSON of less depth"),
        (b'{"text": ' + b"9" * 5000 + b"}", None, "a JSON object is expected"),
        (b'{"text": "' + b"x" * 200_000 + b'"}', None, "a line of at most 150000 bytes is expected"),
        (b"[1]", None, "an object is expected"),
        (b'{"text": "a"} {}', None, "Extra data"),
        (BOM + b'{"text": "a"}', None, "JSON"),
    ],
)
def test_a_malformed_line_is_told_and_spoils_no_other(
    tmp_path: Path, line: bytes, field: str | None, message: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + line + b'\n{"text": "b"}')
    rows = read(tmp_path / "a.jsonl", limit=150_000)
    ((document, number, where, what),) = told(rows)
    assert (document, number, where) == (1, 2, field)
    assert message in what
    assert [row.document for row in rows] == [0, 1, 2]


def test_a_line_of_text_is_told_when_it_is_not_utf8_or_too_long(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\nb\xff\n" + b"x" * 500 + b"\nc")
    rows = read(tmp_path / "a.txt", limit=100)
    assert told(rows) == [
        (1, 2, None, "UTF-8 is expected; byte 2 of the line is not"),
        (2, 3, None, "a line of at most 100 bytes is expected"),
    ]
    assert [row.document for row in rows] == [0, 1, 2, 3]
