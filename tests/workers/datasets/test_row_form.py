"""`row_form`: rows that fit two forms are read as the one that is asked for, and as no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atomscope.errors import InvalidInput
from atomscope.types.spec import RowForm
from tests.workers.datasets.files import FORMATS, good, read, told, write

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3", "text": "### Add. 1 and 2: 3"}
"""A row as Alpaca's own set has them."""
ASKED = [("user", "Add.\n1 and 2"), ("assistant", "3")]
BOTH = {"messages": [USER, ANSWER], "conversations": [{"from": "human", "value": "no"}]}


def turns(path: Path, form: RowForm) -> list[list[tuple[str, Any]]]:
    return [[(turn["role"], turn.get("content")) for turn in row.messages] for row in good(path, form)]


@pytest.mark.parametrize("ending", FORMATS)
def test_a_row_of_two_forms_is_the_one_asked_for_in_every_format(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"rows.{ending}", [ALPACA, ALPACA])
    assert turns(path, "instruction") == [ASKED, ASKED]
    assert turns(path, "text") == [[("text", ALPACA["text"])]] * 2


@pytest.mark.parametrize(
    ("form", "said"),
    [("messages", [("user", "hi"), ("assistant", "yes")]), ("conversations", [("user", "no")])],
)
def test_of_two_conversations_the_other_is_not_looked_at(
    tmp_path: Path, form: RowForm, said: list[tuple[str, str]]
) -> None:
    assert turns(write(tmp_path / "rows.jsonl", [BOTH]), form) == [said]


def test_what_another_form_holds_need_not_be_well_formed(tmp_path: Path) -> None:
    rows = [{"text": 3, "messages": [USER, ANSWER], "system": "s"}, {"text": "a", "messages": 3, "system": 4}]
    path = write(tmp_path / "rows.jsonl", rows)
    assert turns(write(tmp_path / "one.jsonl", rows[:1]), "messages")[0][0] == ("system", "s")
    assert told(read(path, form="text")) == [(0, 1, "text", "a string is expected")]


def test_the_columns_of_other_forms_may_have_any_type(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", [{"text": "a", "messages": 3}])
    assert turns(path, "text") == [[("text", "a")]]


def test_of_conversations_alpacas_own_fields_are_not_looked_at(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", [{"messages": [USER, ANSWER], "input": 3, "history": 4}])
    assert turns(path, "messages") == [[("user", "hi"), ("assistant", "yes")]]


def test_without_a_form_the_refusal_names_the_setting_and_both_values(tmp_path: Path) -> None:
    ((_, _, field, message),) = told(read(write(tmp_path / "rows.jsonl", [ALPACA])))
    assert field == "instruction"
    assert "`row_form`, `instruction` or `text`, to say which the adapter was trained on" in message


@pytest.mark.parametrize(
    ("form", "field"),
    [("messages", "messages"), ("conversations", "conversations"), ("prompt", "prompt")],
)
def test_a_row_without_the_form_asked_for_is_told_of_the_field(
    tmp_path: Path, form: RowForm, field: str
) -> None:
    message = f"`{field}` is expected: the setting `row_form` is `{form}`"
    assert told(read(write(tmp_path / "rows.jsonl", [ALPACA]), form=form)) == [(0, 1, field, message)]
    for ending in ("csv", "parquet"):
        with pytest.raises(InvalidInput, match=f"`row_form` is `{form}`") as caught:
            read(write(tmp_path / f"rows.{ending}", [ALPACA]), form=form)
        assert caught.value.code == "bad_column"


def test_a_text_file_has_rows_of_text_and_of_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("a\n")
    assert turns(tmp_path / "rows.txt", "text") == [[("text", "a")]]
    assert told(read(tmp_path / "rows.txt", form="messages"))[0][2] == "messages"
