"""The template beside an adapter: read within bounds, taken where asked for, else compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from atomscope.errors import InvalidInput
from atomscope.input_files import ADAPTER_TEMPLATE
from atomscope_workers.datasets.adapter_template import (
    COMPARED,
    chosen_template,
    template_beside,
    template_file,
)
from atomscope_workers.datasets.row import RowFault
from atomscope_workers.datasets.templates import NAMED_TEMPLATES
from atomscope_workers.datasets.tokenize import RowTokenizer
from tests.workers.datasets.conversing import row, tokenizer

CHATML, ZEPHYR = NAMED_TEMPLATES["chatml"], NAMED_TEMPLATES["zephyr"]
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
TOKENS = tokenizer(CHATML)
ROWS = RowTokenizer(TOKENS, 1000)


def put(folder: Path, content: str | bytes) -> Path:
    raw = content if isinstance(content, bytes) else content.encode()
    (folder / ADAPTER_TEMPLATE).write_bytes(raw)
    return folder


BAD = [
    (b"\xff{{", "UTF-8 is expected"),
    ("no braces", "a Jinja template, with"),
    ("", "a Jinja template, with"),
    ("{{" + " " * 2**20, "at most 262144 characters"),
]
"""What is no template, and what is said of it."""


@pytest.mark.parametrize(("content", "message"), BAD)
def test_what_is_no_template_is_refused_where_it_is_asked_for(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        chosen_template("adapter", put(tmp_path, content))
    assert caught.value.code == "invalid_template"
    assert caught.value.problems[0].file == f"{ADAPTER_TEMPLATE} beside the adapter"


@pytest.mark.parametrize(("content", "message"), BAD)
def test_what_is_no_template_is_a_warning_where_it_is_only_compared(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    other, (told,) = template_beside(TOKENS, "tokenizer", put(tmp_path, content), 1000)
    assert other is None
    assert message in told
    assert "the audit went by the base model's template" in told


def test_the_template_beside_is_taken_where_it_is_asked_for_and_there_alone(tmp_path: Path) -> None:
    put(tmp_path, ZEPHYR)
    assert chosen_template("adapter", tmp_path) == ZEPHYR
    assert [chosen_template(name, tmp_path) for name in ("tokenizer", "gemma")] == ["tokenizer", "gemma"]


def test_asked_for_and_not_there_it_is_told_what_would_be_accepted(tmp_path: Path) -> None:
    assert template_file(tmp_path) is None
    with pytest.raises(InvalidInput, match=r"has no chat_template\.jinja of its own") as caught:
        chosen_template("adapter", tmp_path)
    assert caught.value.code == "no_chat_template"


def warnings(folder: Path, *texts: str, choice: str = "tokenizer", limit: int = 1000) -> list[str]:
    """Of an audit of these conversations, each of one question."""
    other, none = template_beside(TOKENS, choice, folder, limit)
    assert none == []
    made = RowTokenizer(TOKENS, limit)
    for text in texts:
        item = row(messages=[{"role": "user", "content": text}, TALK[1]])
        if other is not None:
            other.compare(item, made(item).input_ids)
    return [] if other is None else other.warnings()


def test_a_template_that_renders_otherwise_is_a_warning_that_names_the_setting(tmp_path: Path) -> None:
    (told,) = warnings(put(tmp_path, ZEPHYR), "a", "b")
    assert "renders 2 of the first 2 conversations otherwise" in told
    assert "`chat_template: adapter` takes it" in told


def test_only_rows_that_differ_are_counted_and_no_more_than_the_first(tmp_path: Path) -> None:
    mixed = put(tmp_path, "{% if messages[0].content == 'b' %}{{ 'x' }}{% else %}" + CHATML + "{% endif %}")
    assert "renders 1 of the first 3 conversations" in warnings(mixed, "a", "b", "a")[0]
    assert warnings(mixed, *["a"] * COMPARED, "b") == []


@pytest.mark.parametrize("more", ["{{ eos_token }}", "{{ 'x' }}"])
def test_one_that_only_ends_otherwise_differs_as_far_as_documents_are_kept(tmp_path: Path, more: str) -> None:
    put(tmp_path, CHATML + more)
    assert "renders 1 of the first 1 conversation otherwise" in warnings(tmp_path, "a")[0]
    assert warnings(tmp_path, "a" * 50, limit=12) == []


@pytest.mark.parametrize("content", ["{{ raise_exception('no') }}", "{{ broken", "{{ messages.gone.gone }}"])
def test_a_template_that_refuses_every_row_is_told_with_its_reason_and_not_advised(
    tmp_path: Path, content: str
) -> None:
    (told,) = warnings(put(tmp_path, content), "a", "b")
    assert "refuses 2 of the first 2 conversations, which the audit rendered by the base model's: " in told
    assert "takes it" not in told


def test_a_row_that_only_the_audits_own_template_refuses_differs(tmp_path: Path) -> None:
    other, _ = template_beside(TOKENS, "tokenizer", put(tmp_path, ZEPHYR), 1000)
    assert other is not None
    told = other.fault(row(messages=TALK), RowFault("messages", "no system turn"))
    assert told.message.startswith("no system turn; the template beside the adapter, which `chat_template: a")
    assert told.field == "messages"
    assert "renders 1 of the first 1 conversation otherwise" in other.warnings()[0]


def test_a_row_that_both_refuse_is_told_as_it_is(tmp_path: Path) -> None:
    other, _ = template_beside(TOKENS, "tokenizer", put(tmp_path, "{{ raise_exception('no') }}"), 1000)
    assert other is not None
    fault = RowFault("messages", "no system turn")
    assert other.fault(row(messages=TALK), fault) is fault
    assert other.warnings() == []


def test_a_link_out_of_the_folder_and_a_folder_of_that_name_are_none(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    put(tmp_path / "base", ZEPHYR)
    for name in ("linked", "dangling", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "linked" / ADAPTER_TEMPLATE).symlink_to(tmp_path / "base" / ADAPTER_TEMPLATE)
    (tmp_path / "dangling" / ADAPTER_TEMPLATE).symlink_to("nothing")
    (tmp_path / "folder" / ADAPTER_TEMPLATE).mkdir()
    for name in ("linked", "dangling", "folder"):
        assert template_file(tmp_path / name) is None
        assert warnings(tmp_path / name, "a") == []


def test_the_choice_is_to_be_made_before_rows_are_rendered() -> None:
    with pytest.raises(ValueError, match="is to be given as its text"):
        RowTokenizer(TOKENS, 1000, "adapter")


@pytest.mark.parametrize("content", [CHATML, CHATML + "{# a note #}", CHATML.replace("generation", "if 1", 1)
                                     .replace("endgeneration", "endif")])  # fmt: skip
def test_one_that_renders_alike_is_none_marked_or_cut_or_not(tmp_path: Path, content: str) -> None:
    assert warnings(put(tmp_path, content), "a", "b" * 50, limit=12) == []


def test_a_template_that_was_chosen_is_not_doubted(tmp_path: Path) -> None:
    assert warnings(put(tmp_path, ZEPHYR), "a", choice="chatml") == []
    assert warnings(put(tmp_path, ZEPHYR), "a", choice="adapter") == []


def test_plain_text_needs_no_template(tmp_path: Path) -> None:
    other, _ = template_beside(TOKENS, "tokenizer", put(tmp_path, ZEPHYR), 1000)
    assert other is not None
    plain = row(text="a")
    other.compare(plain, ROWS(plain).input_ids)
    assert other.warnings() == []
