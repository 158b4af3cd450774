"""What is said of a row that is not well-formed."""

from __future__ import annotations

import pytest

from atomscope_workers.datasets.rows import BadRow, parse_row

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yes"}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sea"}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def fault(fields: object) -> tuple[str | None, str]:
    """Field and message of a malformed row."""
    found = parse_row(fields, document=4, line=5, file="rows")
    assert isinstance(found, BadRow), found
    (problem,) = found.problems
    assert (found.document, found.line, problem.file, problem.line) == (4, 5, "rows", 5)
    return problem.field, problem.message


BOTH = {"from": "human", "value": "a", "role": "user"}


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        (3, None, "an object is expected"),
        (
            {},
            None,
            "`messages`, `conversations`, `instruction` and `output`, `prompt` and `completion`, or `text`",
        ),
        ({"question": "a", "answer": "b"}, None, "`answer` could be a turn of a chat or plain text"),
        ({"chosen": [], "rejected": []}, None, "preferences"),
        (
            {"prompt": "a", "response": "b"},
            "completion",
            "`response` could be a turn of a chat or plain text",
        ),
        ({"prompt": "a", "chosen": "b"}, "completion", "preferences"),
        ({"prompt": "a"}, "completion", "`prompt` and `completion` are expected together"),
        ({"instruction": "a", "input": "b"}, "output", "`instruction` and `output` are expected together"),
        (
            {"messages": [USER], "prompt": "a", "completion": "b"},
            "messages",
            "two forms, `messages`, and `prompt` and `completion`",
        ),
        ({"conversations": [], "messages": []}, "messages", "two forms, `messages`, and `conversations`"),
        ({"instruction": "a", "completion": "b"}, "instruction", "two forms, `instruction` and `output`"),
        (
            {"text": "a", "instruction": "b", "output": "c"},
            "instruction",
            "`instruction` and `output`, and `text`",
        ),
        ({"text": ["a"]}, "text", "a string"),
        ({"text": "\ud800"}, "text", "half of a surrogate pair"),
        ({"text": "a" * (16 * 2**20 + 1)}, None, "at most 16777216 characters"),
        ({"text": "a", "system": "s"}, "system", "not with plain text"),
        ({"prompt": "a", "completion": "b", "tools": [TOOL]}, "tools", "not with plain text"),
        ({"prompt": "a", "completion": [ANSWER]}, "completion", "both be strings or both be lists"),
        ({"prompt": 1, "completion": "x"}, "completion", "both be strings"),
        ({"text": "a", "id": 1.5}, "id", "a string or a whole number"),
        ({"text": "a", "id": True}, "id", "a string or a whole number"),
        ({"text": "a", "id": 2**64}, "id", "64 bits"),
        ({"text": "a", "id": "x" * 513}, "id", "512 characters"),
        ({"text": "a", "images": ["x"]}, "images", "`images`"),
        ({"messages": [USER], "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs", "not supported"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": {}}, "messages", "at least one message"),
        ({"messages": "[{"}, "messages", "JSON is expected"),
        ({"messages": '[{"role": NaN}]'}, "messages", "no NaN"),
        ({"messages": '[{"role": "user", "role": "user"}]'}, "messages: role", "given twice"),
        ({"messages": [USER] * 1025}, "messages", "at most 1024 messages"),
        ({"messages": [USER, "x"]}, "messages[1]", "an object with `role` and `content`"),
        (
            {"messages": [{"role": "critic", "content": ""}]},
            "messages[0].role",
            "one of system, developer, user",
        ),
        ({"messages": [{"role": ["user"], "content": ""}]}, "messages[0].role", "one of system"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "a string"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "a string"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content", "a string"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "parts of text"),
        (
            {"messages": [USER, {"role": "assistant", "content": "\udc00"}]},
            "messages[1].content",
            "surrogate",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}
                ]
            },
            "messages[0].content[1]",
            "`text` is expected, not 'image_url'",
        ),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]", "`text` is expected"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "a string",
        ),
        ({"messages": [{**USER, "images": ["x"]}]}, "messages[0].images", "only text"),
        ({"messages": [{**ANSWER, "audio": {"id": "x"}}]}, "messages[0].audio", "only text"),
        (
            {"messages": [{**ANSWER, "function_call": {"name": "f"}}]},
            "messages[0].function_call",
            "`tool_calls`",
        ),
        ({"messages": [{**ANSWER, "loss": True}]}, "messages[0].loss", "`train` or `weight`"),
        ({"messages": [{**ANSWER, "train_detail": [1]}]}, "messages[0].train_detail", "whole turn"),
        ({"messages": [{**ANSWER, "weight": 0.5}]}, "messages[0].weight", "0 or 1 is expected"),
        ({"messages": [{**ANSWER, "weight": "1"}]}, "messages[0].weight", "0 or 1 is expected"),
        ({"messages": [{**ANSWER, "train": 1}]}, "messages[0].train", "true or false is expected"),
        ({"messages": [{**ANSWER, "train": True, "weight": 1}]}, "messages[0].train", "not both"),
        ({"messages": [{**USER, "train": True}]}, "messages[0].train", "only an assistant's turn"),
        ({"messages": [{**USER, "tool_calls": [CALL]}]}, "messages[0].tool_calls", "assistant's turn"),
        (
            {"messages": [{**ANSWER, "tool_calls": CALL}]},
            "messages[0].tool_calls",
            "a list of at least one call",
        ),
        ({"messages": [{**ANSWER, "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls[0].name", "name"),
        (
            {"messages": [{**ANSWER, "tool_calls": [{"function": {"arguments": {}}}]}]},
            "messages[0].tool_calls[0].function.name",
            "name of a function",
        ),
        (
            {"messages": [{**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}]},
            "messages[0].tool_calls[0].function.arguments",
            "an object, or JSON text",
        ),
        (
            {"messages": [{**ANSWER, "tool_calls": [{"name": "f", "arguments": {"x": float("nan")}}]}]},
            "messages[0].tool_calls[0]",
            "values that JSON can hold",
        ),
        ({"messages": [{**USER, "name": 3}]}, "messages[0].name", "a string"),
        ({"messages": [{**USER, "thinking": "x"}]}, "messages[0].thinking", "assistant's turn alone"),
        ({"messages": [{**ANSWER, "thinking": "x", "reasoning": "x"}]}, "messages[0].thinking", "one of"),
        ({"messages": [{**ANSWER, "reasoning_content": ["x"]}]}, "messages[0].reasoning_content", "a string"),
        ({"messages": [{"role": "system", "content": "a"}, USER], "system": "b"}, "system", "not both"),
        ({"messages": [USER], "system": 3}, "system", "a string"),
        ({"messages": [USER], "tools": "{"}, "tools", "JSON is expected"),
        ({"messages": [USER], "tools": {"name": "f"}}, "tools", "a list of at most 1024 functions"),
        ({"messages": [USER], "tools": [{"description": "d"}]}, "tools[0].name", "name of a function"),
        ({"messages": [USER], "tools": ["f"]}, "tools[0]", "an object"),
        ({"messages": [USER], "tools": [TOOL], "functions": [TOOL]}, "functions", "not both"),
        ({"conversations": [BOTH]}, "conversations[0]", "not both"),
        (
            {"conversations": [{"from": "narrator", "value": "a"}]},
            "conversations[0].from",
            "one of system, human",
        ),
        ({"conversations": [{"value": "a"}]}, "conversations[0].from", "one of system, human"),
        ({"conversations": [{"from": "gpt"}]}, "conversations[0].value", "a string"),
        ({"conversations": [{"from": "gpt", "value": "\ud800"}]}, "conversations[0].value", "surrogate"),
        (
            {"conversations": [{"from": "function_call", "value": "look()"}]},
            "conversations[0].value",
            "JSON is",
        ),
        (
            {"conversations": [{"from": "function_call", "value": "[3]"}]},
            "conversations[0].value[0]",
            "an object",
        ),
        ({"instruction": ["a"], "output": "b"}, "instruction", "a string"),
        ({"instruction": "a", "output": 3}, "output", "a string"),
        ({"instruction": "a", "output": "b", "input": 3}, "input", "a string"),
        ({"instruction": "a", "output": "b", "history": [["q"]]}, "history[0]", "two strings"),
        ({"instruction": "a", "output": "b", "history": {"q": "a"}}, "history", "pairs"),
        ({"instruction": "a", "output": "\ud800"}, "output", "surrogate"),
        ({"instruction": "a", "output": "b", "history": [["q", "\ud800"]]}, "history[0][1]", "surrogate"),
    ],
)
def test_a_malformed_row_is_told_by_field_and_what_is_accepted(
    fields: object, field: str | None, message: str
) -> None:
    found = fault(fields)
    assert found[0] == field
    assert message in found[1]
