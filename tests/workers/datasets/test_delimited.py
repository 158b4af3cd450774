"""CSV and TSV by RFC 4180: quoting, physical lines, headers, and what is told of a row that is not one."""

from __future__ import annotations

from pathlib import Path

import pytest

from atomscope.errors import InvalidInput
from tests.workers.datasets.files import good, read, told


def put(folder: Path, content: bytes | str, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_quotes_hold_delimiters_quotes_and_breaks_and_a_row_is_at_its_first_line(
    tmp_path: Path, mark: str, end: str
) -> None:
    lines = [
        "id, prompt ,completion,other",
        "1,plain,,x",
        '2,"a, ""b""","two',
        "",
        'lines",y',
        "",
        '"3"," c ",d,"z"',
    ]
    rows = good(put(tmp_path, mark + end.join(lines)))
    assert [(row.line, row.id, *(turn["content"] for turn in row.messages)) for row in rows] == [
        (2, "1", "plain", ""),
        (3, "2", 'a, "b"', f"two{end}{end}lines"),
        (7, "3", " c ", "d"),
    ]


def test_tabs_part_the_fields_of_tsv_and_commas_are_text(tmp_path: Path) -> None:
    (row,) = good(put(tmp_path, 'prompt\tcompletion\na,b\t"c\td"\n', "a.tsv"))
    assert [turn["content"] for turn in row.messages] == ["a,b", "c\td"]


def test_an_empty_value_is_an_empty_text_or_none_at_all(tmp_path: Path) -> None:
    (row,) = good(put(tmp_path, "id,instruction,input,output,system,history,tools\n,a,,,,,\n"))
    assert row.id == "row-0"
    assert [turn["content"] for turn in row.messages] == ["a", ""]


@pytest.mark.parametrize(
    ("line", "field", "message"),
    [
        ("a", None, "2 columns are expected, as in the header; there is 1"),
        ("a,[],b", None, "2 columns are expected, as in the header; there are 3"),
        ('1,"[]"x', None, "the value of column 2 has something behind the closing quote"),
        ('1"x",[]', None, "the value of column 1 has a quote in it that is not at its beginning"),
        ("1," + "," * 5000, None, "at most 4096 columns"),
        ("1,", None, "is expected"),
        ("1,hello", "messages", "JSON is expected"),
        ("1,\"[{'role': 'user'}]\"", "messages", "JSON is expected"),
        ('1,"[NaN]"', "messages", "no NaN"),
        ('1,"[{""role"": ""user"", ""content"": 3}]"', "messages[0].content", "parts of text"),
        (b"\xff,[]", None, "byte 1 of the row is not"),
    ],
)
def test_a_malformed_row_is_told_and_spoils_no_other(
    tmp_path: Path, line: str | bytes, field: str | None, message: str
) -> None:
    good_line = b'1,"[{""role"": ""user"", ""content"": ""a""}]"\n'
    raw = line if isinstance(line, bytes) else line.encode()
    rows = read(put(tmp_path, b"id,messages\n" + good_line + raw + b"\n" + good_line))
    ((document, number, where, what),) = told(rows)
    assert (document, number, where) == (1, 3, field)
    assert message in what
    assert [row.document for row in rows] == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ("a,b\n1,2\n", "bad_column", "names parted by commas: `messages`, `conversations`"),
        ("prompt;completion\na;b\n", "bad_column", "names parted by commas"),
        ("prompt,response\na,b\n", "bad_column", "`response` could be a turn"),
        ("prompt,completion,text\na,b,c\n", "bad_column", "two forms"),
        ("text,text\na,b\n", "bad_column", "each column is expected once"),
        (b"text,\xff\na,b\n", "bad_column", "UTF-8"),
        (b"\xff\xfet\x00e\x00x\x00t\x00\n\x00", "bad_column", "UTF-8"),
        ('text\n"a\n\nb\n', "invalid_csv", "a quote in the row of line 2 is never closed"),
        ('text\na\n"b' + "x\n" * 600, "invalid_csv", "the row of line 3 is longer than 1000 bytes"),
        ("text\na\n" + "x" * 1100 + "\nb\n", "invalid_csv", "the row of line 3 is longer than 1000 bytes"),
    ],
)
def test_a_header_or_quote_that_leaves_rows_unclear_refuses_the_file(
    tmp_path: Path, content: str | bytes, code: str, message: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(put(tmp_path, content), limit=1000)
    assert (caught.value.code, caught.value.problems[0].file) == (code, "a.csv")
    assert message in str(caught.value)
