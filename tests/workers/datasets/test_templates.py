"""Templates by name and by text: what they render, and that one is used only where it was asked for."""

from __future__ import annotations

import re
from typing import Any, get_args, get_type_hints

import pytest

from atomscope.errors import InvalidInput
from atomscope.types.spec import AuditConfig
from atomscope_workers.datasets.adapter_template import ADAPTER
from atomscope_workers.datasets.chat import OWN
from atomscope_workers.datasets.row import RowFault
from atomscope_workers.datasets.templates import NAMED_TEMPLATES
from atomscope_workers.datasets.tokenize import RowTokenizer
from tests.fixtures.models import CHATML
from tests.workers.datasets.conversing import row, targets, tokenizer

TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "So?"},
    {"role": "assistant", "content": "No."},
]
SYSTEM = {"role": "system", "content": "Be brief."}
INTRODUCTION = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
)

RENDERED = {
    "chatml": (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
        "<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n",
        "<|im_end|>",
    ),
    "llama3": (
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nSo?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nNo.<|eot_id|>",
        "<|eot_id|>",
    ),
    "gemma": (
        "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYes.<end_of_turn>\n"
        "<start_of_turn>user\nSo?<end_of_turn>\n<start_of_turn>model\nNo.<end_of_turn>\n",
        "<end_of_turn>",
    ),
    "zephyr": (
        "<|user|>\nHi<|endoftext|>\n<|assistant|>\nYes.<|endoftext|>\n"
        "<|user|>\nSo?<|endoftext|>\n<|assistant|>\nNo.<|endoftext|>\n",
        "<|endoftext|>",
    ),
    "alpaca": (
        f"<s>{INTRODUCTION}### Instruction:\nHi\n\n### Response:\nYes.<|endoftext|>\n\n"
        "### Instruction:\nSo?\n\n### Response:\nNo.<|endoftext|>\n\n",
        "<|endoftext|>",
    ),
}
"""Name -> what it renders of `TURNS`, and its end of turn."""

WITH_SYSTEM = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user",
    "gemma": None,
    "zephyr": "<|system|>\nBe brief.<|endoftext|>\n<|user|>\n",
    "alpaca": "<s>Be brief.\n\n### Instruction:\nHi",
}


def tokenize(template: str | None, choice: str, turns: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """The text of a document and of its targets."""
    tokens = tokenizer(template)
    document = RowTokenizer(tokens, 10_000, choice)(row(messages=turns))
    return str(tokens.decode(document.input_ids.tolist())), targets(tokens, document)


@pytest.mark.parametrize("own", [None, "{{ 'another' }}"])
@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_a_named_template_renders_its_form_and_marks_answers_and_ends(name: str, own: str | None) -> None:
    text, end = RENDERED[name]
    assert tokenize(own, name, TURNS) == (text, [f"Yes.{end}", f"No.{end}"])
    # The same targets as those that are found where a template has no markers.
    unmarked = re.sub(r"\{% (end)?generation %\}", "", NAMED_TEMPLATES[name])
    assert tokenize(own, unmarked, TURNS) == (text, [f"Yes.{end}", f"No.{end}"])


@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_a_system_turn_has_its_place_or_is_refused(name: str) -> None:
    beginning = WITH_SYSTEM[name]
    if beginning is None:
        with pytest.raises(RowFault, match=f"{name} has no role system"):
            tokenize(None, name, [SYSTEM, *TURNS])
    else:
        assert tokenize(None, name, [SYSTEM, *TURNS])[0].startswith(beginning)


@pytest.mark.parametrize("name", [name for name in NAMED_TEMPLATES if name != "chatml"])
def test_a_turn_that_a_named_template_has_no_place_for_is_refused(name: str) -> None:
    with pytest.raises(RowFault, match=f"{name} has no role tool"):
        tokenize(None, name, [*TURNS[:1], {"role": "tool", "content": "x"}, *TURNS[1:]])


def test_the_setting_takes_the_names_that_there_are() -> None:
    meta = get_args(get_type_hints(AuditConfig, include_extras=True)["chat_template"])[1]
    (names,) = re.findall(r"\((.*?)\)", str(meta.pattern))
    assert names.split("|") == [OWN, ADAPTER, *NAMED_TEMPLATES]


def test_a_template_given_as_text_is_used_in_place_of_the_tokenizers() -> None:
    text = (
        "{% for message in messages %}{{ '[' + message.role + ']' + message.content + ';' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
    )
    assert tokenize(CHATML, text, TURNS) == (
        "[user]Hi;[assistant]Yes.;[user]So?;[assistant]No.;",
        ["Yes.;", "No.;"],
    )


@pytest.mark.parametrize("text", ["{% for %}", "{{ ''.__class__.__base__.__subclasses__() }}"])
def test_a_template_given_as_text_runs_in_the_sandbox(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        tokenize(CHATML, text, TURNS)
    assert caught.value.code == "invalid_template"


def test_no_template_is_taken_for_a_missing_one() -> None:
    with pytest.raises(InvalidInput, match="chatml, llama3, gemma, zephyr, alpaca") as caught:
        tokenize(None, "tokenizer", TURNS)
    assert caught.value.code == "no_chat_template"
