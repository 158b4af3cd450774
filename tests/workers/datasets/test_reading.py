"""One conversation is one document, whatever the form and the format; formats by ending; limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atomscope.errors import InvalidInput
from atomscope.input_files import DATASET_ENDINGS
from atomscope_workers.datasets.reading import count_rows, read_rows
from atomscope_workers.datasets.tokenize import RowTokenizer
from tests.workers.datasets.conversing import TOOLS, tokenizer
from tests.workers.datasets.files import FORMATS, good, sharegpt, write

TOKENS = tokenizer(TOOLS)
TOKENIZE = RowTokenizer(TOKENS, 100_000)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ['a "quoted" word', "a,b\tc", "line\r\nbreak\n", "\ufeffmark", "\u2028", "[1]", "null", ""]
)


def _call(name: str, value: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": {"x": value}}}


CALL = st.builds(_call, st.sampled_from(["look", "go"]), TEXT)
TOOL = {"type": "function", "function": {"name": "look", "description": 'a, "b"', "parameters": {}}}


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Turns of every role, calls among them; no key is ever null."""
    messages: list[dict[str, Any]] = (
        [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    )
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(TEXT)})
        if draw(st.booleans()):
            messages.append({"role": "assistant", "tool_calls": draw(st.lists(CALL, min_size=1, max_size=2))})
            messages.append({"role": "tool", "content": draw(TEXT)})
        messages.append({"role": "assistant", "content": draw(TEXT)})
    return messages


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(messages=conversations(), tools=st.booleans())
def test_a_conversation_is_the_same_document_in_every_form_and_format(
    tmp_path: Path, messages: list[dict[str, Any]], tools: bool
) -> None:
    more = {"tools": [TOOL]} if tools else {}
    ids = TOKENS.apply_chat_template(messages, tools=more.get("tools"))["input_ids"]
    masks: list[list[bool]] = []
    for ending in FORMATS:
        for form in ({"messages": messages}, {"conversations": sharegpt(messages)}):
            # An empty struct has no place in Parquet, JSON text of it has.
            extra = {name: json.dumps(item) for name, item in more.items()} if ending == "parquet" else more
            (row,) = good(write(tmp_path / f"rows.{ending}", [form | extra]))
            document = TOKENIZE(row)
            assert document.input_ids.tolist() == ids
            masks.append(document.target_mask.tolist())
    assert np.ptp(np.array(masks, dtype=int), axis=0).max() == 0


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(texts=st.lists(TEXT, min_size=5, max_size=5))
def test_plain_texts_and_instructions_are_the_same_in_every_format(tmp_path: Path, texts: list[str]) -> None:
    a, b, c, d, e = texts
    for fields in (
        {"text": a},
        {"prompt": a, "completion": b},
        {"instruction": a, "input": b, "output": c, "system": d, "history": [[e, a]]},
    ):
        found = [good(write(tmp_path / f"rows.{ending}", [fields]))[0] for ending in FORMATS]
        assert [row.messages for row in found] == [found[0].messages] * len(FORMATS)
        documents = [TOKENIZE(row) for row in found]
        assert all(np.array_equal(item.input_ids, documents[0].input_ids) for item in documents)
        assert all(np.array_equal(item.target_mask, documents[0].target_mask) for item in documents)


@pytest.mark.parametrize("capitals", [False, True])
@pytest.mark.parametrize("ending", DATASET_ENDINGS)
def test_every_ending_has_a_reader_and_a_limit_of_rows(tmp_path: Path, ending: str, capitals: bool) -> None:
    path = tmp_path / f"rows{ending}"
    if ending == ".txt":
        path.write_text("a\nb\nc\n")
    else:
        write(path, [{"text": item} for item in "abc"])
    if capitals:
        path = path.rename(tmp_path / f"ROWS{ending.upper()}")
    assert [row.messages[0]["content"] for row in good(path)] == ["a", "b", "c"]
    assert count_rows(path) in {".json": {0}, ".csv": {4}, ".tsv": {4}}.get(ending, {3})
    with pytest.raises(InvalidInput, match="at most 2 rows") as caught:
        list(read_rows(path, file="rows", max_rows=2))
    assert caught.value.code == "too_many_rows"


@pytest.mark.parametrize(
    ("name", "code"), [("rows.xlsx", "unsupported_format"), ("rows.csv", "missing_file")]
)
def test_a_file_of_no_known_format_or_none_at_all_is_refused(tmp_path: Path, name: str, code: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        list(read_rows(tmp_path / name, file=name, max_rows=2))
    assert (caught.value.code, caught.value.problems[0].file) == (code, name)
    if code == "unsupported_format":
        assert all(ending in str(caught.value) for ending in DATASET_ENDINGS)


@pytest.mark.parametrize("ending", DATASET_ENDINGS)
def test_an_empty_file_has_no_row(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    path.touch()
    if ending in (".json", ".parquet"):
        with pytest.raises(InvalidInput) as caught:
            good(path)
        assert caught.value.code == f"invalid{ending.replace('.', '_')}"
    else:
        assert good(path) == []
