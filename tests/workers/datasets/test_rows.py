"""What a row may be, and the turns that it gives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from atomscope_workers.datasets.rows import Row
from tests.workers.datasets.conversing import row

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yes"}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sea"}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({"messages": [USER, ANSWER]}, [USER, ANSWER]),
        ({"messages": json.dumps([USER, ANSWER])}, [USER, ANSWER]),
        ({"conversations": [USER, ANSWER]}, [USER, ANSWER]),
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]},
            [USER, ANSWER],
        ),
        (
            {"conversations": [{"from": "user", "value": "hi"}, {"from": "chatgpt", "value": "yes"}]},
            [USER, ANSWER],
        ),
        ({"instruction": "hi", "output": "yes"}, [USER, ANSWER]),
        ({"instruction": "hi", "input": "", "output": "yes", "history": []}, [USER, ANSWER]),
        ({"instruction": "", "input": "hi", "output": "yes", "history": ""}, [USER, ANSWER]),
        (
            {"instruction": "add", "input": "1 2", "output": "3"},
            [{"role": "user", "content": "add\n1 2"}, {"role": "assistant", "content": "3"}],
        ),
        (
            {"instruction": "b", "output": "B", "history": [["hi", "yes"]], "system": "s"},
            [
                {"role": "system", "content": "s"},
                USER,
                ANSWER,
                {"role": "user", "content": "b"},
                {"role": "assistant", "content": "B"},
            ],
        ),
        ({"messages": [USER, ANSWER], "prompt": "p", "prompt_id": "1"}, [USER, ANSWER]),
        ({"messages": [USER, ANSWER], "instruction": "i"}, [USER, ANSWER]),
        ({"messages": [USER, ANSWER], "system": "s"}, [{"role": "system", "content": "s"}, USER, ANSWER]),
        ({"messages": [USER, ANSWER], "system": ""}, [USER, ANSWER]),
        ({"prompt": [USER], "completion": [ANSWER]}, [USER, ANSWER]),
        ({"text": "a b"}, [{"role": "text", "content": "a b"}]),
        (
            {"prompt": "a", "completion": "b"},
            [{"role": "prompt", "content": "a"}, {"role": "completion", "content": "b"}],
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}],
                    }
                ]
            },
            [USER],
        ),
        (
            {"messages": [{**USER, "tool_calls": [], "images": None, "extra": 1}, ANSWER], "label": 3},
            [USER, ANSWER],
        ),
        ({"messages": [USER, ANSWER], "tools": [], "functions": None, "text": None}, [USER, ANSWER]),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
            [USER, {"role": "assistant", "tool_calls": [CALL]}],
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "hi"},
                    {"from": "function_call", "value": json.dumps(CALL["function"])},
                ]
            },
            [USER, {"role": "assistant", "tool_calls": [CALL]}],
        ),
    ],
)
def test_every_form_gives_the_turns_that_a_template_is_given(
    fields: dict[str, Any], messages: list[dict[str, Any]]
) -> None:
    assert list(row(**fields).messages) == messages


@pytest.mark.parametrize(
    ("fields", "n_prompt"),
    [
        ({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}, 3),
        ({"prompt": [USER], "completion": [ANSWER], "system": "s"}, 2),
        ({"prompt": "a", "completion": "b"}, 1),
        ({"messages": [USER, ANSWER], "system": "s"}, 0),
        ({"text": "a"}, 0),
    ],
)
def test_turns_of_the_prompt_are_counted(fields: dict[str, Any], n_prompt: int) -> None:
    assert row(**fields).n_prompt == n_prompt


@pytest.mark.parametrize(
    ("given", "trained"),
    [
        ({}, True),
        ({"weight": 1}, True),
        ({"weight": 1.0}, True),
        ({"weight": 0}, False),
        ({"train": True}, True),
        ({"train": False}, False),
    ],
)
def test_a_turn_says_whether_it_is_trained_on(given: dict[str, Any], trained: bool) -> None:
    found = row(messages=[{**USER, "weight": 0}, {**ANSWER, **given}])
    assert found.turns[1].trained is trained
    assert list(found.messages) == [USER, ANSWER]


@pytest.mark.parametrize("wrapped", [[TOOL], json.dumps([TOOL])])
def test_tools_are_passed_through_and_the_older_functions_are_wrapped(wrapped: object) -> None:
    assert row(messages=[USER, ANSWER], tools=wrapped).tools == (TOOL,)
    assert row(messages=[USER, ANSWER], functions=[TOOL["function"]]).tools == (TOOL,)
    bare = {"name": "look", "description": "d"}
    assert row(messages=[USER, ANSWER], tools=[bare]).tools == (bare,)


def test_what_is_stored_shows_tools_reasoning_and_calls_as_text() -> None:
    found = row(
        messages=[
            USER,
            {"role": "assistant", "reasoning_content": "hm", "content": "ah", "tool_calls": [CALL, CALL]},
            {"role": "tool", "content": "blüe", "tool_call_id": "1"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "assistant", "content": ""},
        ],
        tools=[TOOL],
    )
    call = '{"name": "look", "arguments": {"at": "sea"}}'
    assert found.stored() == [
        {"role": "tools", "content": json.dumps(TOOL)},
        USER,
        {"role": "assistant", "content": f"hm\nah\n{call}\n{call}"},
        {"role": "tool", "content": "blüe"},
        {"role": "assistant", "content": call},
        {"role": "assistant", "content": ""},
    ]


def test_an_id_is_text_and_names_the_row_without_one() -> None:
    assert [row(text="a", id=item).id for item in ("x", 7, None)] == ["x", "7", "row-0"]
    assert isinstance(row(text="a"), Row)
