"""Ids are those of the tokenizer's own chat template, targets the assistant's turns and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from atomscope.errors import InvalidInput
from atomscope_workers.datasets.row import RowFault
from atomscope_workers.datasets.tokenize import RowTokenizer
from tests.fixtures.models import CHATML
from tests.workers.datasets.conversing import TOOLS, row, targets, tokenizer

USER = {"role": "user", "content": "How many apples?"}
ANSWER = {"role": "assistant", "content": "Twelve."}
CALL = {"type": "function", "id": "c1", "function": {"name": "look", "arguments": {"at": "sea"}}}
TEXT_CALL = {"type": "function", "function": {"name": "look", "arguments": '{"at": "sea"}'}}
BARE_CALL = {"name": "look", "arguments": {"at": "sea"}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "blue", "tool_call_id": "c1"}

MARKED = TOOLS.replace(
    "{%- if message.reasoning_content %}",
    "{%- if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}{{ '<|im_end|>' }}{% endgeneration %}"
    "{{ '\\n' }}{% continue %}{% endif %}{%- if message.reasoning_content %}",
)
REWRITES = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role }}{{ ' last' if loop.last }}"
    "{{ '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
)

THINKS = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.last %}"
    "{{ '<think>' + (message.reasoning_content or '') + '</think>' }}{% endif %}"
    "{{ message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Leaves reasoning out of all but the last turn, as Qwen 3's does."""
ENDS = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{{ message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}"
    "{{ '<|endoftext|>' }}{% endif %}"
)
"""Ends the whole conversation with a token of its own, as Phi-3's does; it begins as the others do."""

CONVERSATIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"messages": [USER, ANSWER]}, ["Twelve.<|im_end|>"]),
    ({"messages": [USER, ANSWER, USER, ANSWER, USER]}, ["Twelve.<|im_end|>"] * 2),
    ({"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]}, ["Twelve.<|im_end|>"]),
    ({"messages": [USER, ANSWER, USER, {**ANSWER, "train": False}]}, ["Twelve.<|im_end|>"]),
    ({"prompt": [USER, ANSWER, USER], "completion": [ANSWER, USER, ANSWER]}, ["Twelve.<|im_end|>"] * 2),
    ({"messages": [USER, {"role": "assistant", "content": ""}]}, ["<|im_end|>"]),
]
"""Rows, and the text of their targets."""

WITH_TOOLS: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"messages": [USER, CALLED, RESULT, RESULT, ANSWER], "tools": [TOOL]},
        [
            '<tool_call>{"name": "look", "arguments": {"at": "sea"}}</tool_call><|im_end|>',
            "Twelve.<|im_end|>",
        ],
    ),
    (
        {"messages": [USER, {"role": "assistant", "content": "So:", "tool_calls": [TEXT_CALL, BARE_CALL]}]},
        [
            'So:<tool_call>{"name": "look", "arguments": "{\\"at\\": \\"sea\\"}"}</tool_call>'
            '<tool_call>{"name": "look", "arguments": {"at": "sea"}}</tool_call><|im_end|>'
        ],
    ),
    (
        {"messages": [USER, {**CALLED, "weight": 0}, RESULT, ANSWER]},
        ["Twelve.<|im_end|>"],
    ),
    (
        {"messages": [USER, {**ANSWER, "reasoning_content": "count"}]},
        ["<think>count</think>Twelve.<|im_end|>"],
    ),
    (
        {"messages": [USER, {**ANSWER, "thinking": "count"}]},
        ["<think>count</think>Twelve.<|im_end|>"],
    ),
]


@pytest.mark.parametrize(
    ("template", "fields", "expected"),
    [
        *((CHATML, *item) for item in CONVERSATIONS),
        *((TOOLS, *item) for item in (*CONVERSATIONS, *WITH_TOOLS)),
        *((MARKED, *item) for item in CONVERSATIONS),
        (THINKS, {"messages": [USER, ANSWER]}, ["<think></think>Twelve.<|im_end|>"]),
        (
            THINKS,
            {"messages": [USER, {**ANSWER, "reasoning": "hm"}, USER, {**ANSWER, "reasoning": "ah"}]},
            ["Twelve.<|im_end|>", "<think>ah</think>Twelve.<|im_end|>"],
        ),
        (THINKS, {"messages": [USER, ANSWER, USER]}, ["Twelve.<|im_end|>"]),
        (
            THINKS,
            {"messages": [USER, {"role": "assistant", "content": ""}, USER, ANSWER]},
            ["<|im_end|>", "<think></think>Twelve.<|im_end|>"],
        ),
        (
            ENDS,
            {"messages": [USER, ANSWER, USER, ANSWER]},
            ["Twelve.<|im_end|>", "Twelve.<|im_end|>\n<|endoftext|>"],
        ),
        (ENDS, {"messages": [USER, ANSWER, USER]}, ["Twelve.<|im_end|>"]),
    ],
)
def test_ids_are_the_templates_own_and_targets_the_assistants_turns(
    template: str, fields: dict[str, Any], expected: list[str]
) -> None:
    tokens = tokenizer(template)
    document = RowTokenizer(tokens, 10_000)(row(**fields))
    messages = fields.get("messages") or fields["prompt"] + fields["completion"]
    own = tokens.apply_chat_template(messages, tools=fields.get("tools"))["input_ids"]
    assert document.input_ids.tolist() == own
    assert targets(tokens, document) == expected


def test_a_marked_turn_without_weight_is_no_target_and_the_others_stay_as_the_template_marks_them() -> None:
    tokens = tokenizer(MARKED)
    whole = tokens.apply_chat_template([USER, ANSWER, USER, ANSWER], return_assistant_tokens_mask=True)
    plain = RowTokenizer(tokens, 10_000)(row(messages=[USER, ANSWER, USER, ANSWER]))
    assert plain.target_mask.tolist() == [bool(item) for item in whole["assistant_masks"]]
    second = RowTokenizer(tokens, 10_000)(row(messages=[USER, {**ANSWER, "weight": 0}, USER, ANSWER]))
    half = plain.target_mask.sum() // 2
    assert np.flatnonzero(second.target_mask).tolist() == np.flatnonzero(plain.target_mask)[half:].tolist()


def test_a_tokenizer_of_several_templates_uses_the_one_for_tools_where_there_are_tools() -> None:
    tokens = tokenizer(None)
    tokens.chat_template = {"default": CHATML, "tool_use": TOOLS}
    tokenize = RowTokenizer(tokens, 10_000)
    for fields in ({"messages": [USER, ANSWER]}, {"messages": [USER, ANSWER], "tools": [TOOL]}):
        own = tokens.apply_chat_template(fields["messages"], tools=fields.get("tools"))["input_ids"]
        assert tokenize(row(**fields)).input_ids.tolist() == own
    with pytest.raises(RowFault, match="does not use calls"):
        tokenize(row(messages=[USER, CALLED]))


@pytest.mark.parametrize(
    ("template", "fields", "field", "message"),
    [
        (CHATML, {"messages": [USER, ANSWER], "tools": [TOOL]}, "tools", "does not use tools"),
        (CHATML, {"messages": [USER, CALLED]}, "messages[1].tool_calls", "does not use calls"),
        (
            CHATML,
            {"messages": [USER, {**ANSWER, "reasoning": "x"}]},
            "messages[1].reasoning",
            "does not use reasoning",
        ),
        (
            TOOLS,
            {"messages": [USER, {"role": "ipython", "content": "x"}, ANSWER]},
            "messages[1].role",
            "leaves out turns of the role ipython",
        ),
        (
            TOOLS,
            {"conversations": [{"from": "gpt", "value": "hello"}]},
            "conversations[0]",
            "begins with a system or user turn",
        ),
        (
            "{{ raise_exception('roles must alternate') }}",
            {"messages": [USER, ANSWER]},
            "messages",
            "the chat template refuses it (roles must alternate)",
        ),
        ("{{ messages[0].content + 1 }}", {"messages": [USER, ANSWER]}, "messages", "refuses it"),
    ],
)
def test_what_a_template_would_leave_out_or_refuses_is_told_by_field(
    template: str, fields: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(RowFault) as caught:
        RowTokenizer(tokenizer(template), 10_000)(row(**fields))
    assert caught.value.field == field
    assert message in caught.value.message


def test_a_role_that_a_generic_template_renders_is_accepted() -> None:
    tokens = tokenizer(CHATML)
    document = RowTokenizer(tokens, 10_000)(row(messages=[USER, RESULT, ANSWER]))
    assert "tool\nblue" in str(tokens.decode(document.input_ids.tolist()))


@pytest.mark.parametrize(
    ("template", "code"),
    [
        (None, "no_chat_template"),
        ("{% for %}", "invalid_template"),
        ("{{ messages.append(1) }}{{ ''.__class__.__mro__ }}", "invalid_template"),
        (REWRITES, "template_rewrites_turns"),
        (THINKS.replace("<|im_end|>", ""), "template_rewrites_turns"),
        (
            THINKS.replace("message.content", "(message.content if loop.last else 'x')"),
            "template_rewrites_turns",
        ),
    ],
)
def test_a_template_that_no_conversation_can_be_read_by_is_refused(template: str | None, code: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        RowTokenizer(tokenizer(template), 10_000)(row(messages=[USER, ANSWER, USER, ANSWER]))
    assert caught.value.code == code
    assert caught.value.problems[0].file == "chat_template"


def test_plain_text_needs_no_template() -> None:
    tokens = tokenizer(None)
    tokenize = RowTokenizer(tokens, 10_000)
    split = tokenize(row(prompt="How many", completion=" apples?"))
    whole = tokenize(row(text="How many apples?"))
    ids = [*tokens("How many apples?", add_special_tokens=False)["input_ids"], tokens.eos_token_id]
    assert split.input_ids.tolist() == whole.input_ids.tolist() == ids
    assert targets(tokens, split) == [" apples?<|endoftext|>"]
    assert whole.target_mask.tolist() == [False, *[True] * (len(ids) - 1)]


def test_every_token_of_a_text_is_a_target_behind_a_beginning_that_the_tokenizer_adds(tiny_bos: Any) -> None:
    document = RowTokenizer(tiny_bos, 10_000)(row(text="river"))
    assert document.input_ids[0] == tiny_bos.bos_token_id
    assert document.target_mask.tolist() == [False, *[True] * (len(document.input_ids) - 1)]
    assert not RowTokenizer(tiny_bos, 10_000)(row(text="")).target_mask[:1].any()


@pytest.fixture
def tiny_bos() -> Any:
    """A tokenizer that puts `<s>` before a text."""
    from tokenizers.processors import TemplateProcessing

    tokens = tokenizer(None)
    tokens.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokens.bos_token_id)]
    )
    return tokens


def test_a_document_is_cut_from_its_end() -> None:
    tokenize = RowTokenizer(tokenizer(CHATML), 8)
    assert len(tokenize(row(text="river " * 50)).input_ids) == 8
    assert tokenize.truncated == 1


@pytest.mark.parametrize(("boundary", "least"), [(None, 0), (20, 0), (6, 7)])
def test_of_what_is_longer_than_the_models_boundary_more_tokens_than_it_are_run(
    boundary: int | None, least: int
) -> None:
    made = RowTokenizer(tokenizer(CHATML), 12, boundary=boundary)(row(messages=[USER, ANSWER]))
    assert len(made.input_ids) == 12
    assert made.least == least
