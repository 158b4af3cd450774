"""A tokenizer and templates for tests, and what is marked as a target."""

from __future__ import annotations

from typing import Any

from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.datasets.rows import Row, parse_row
from tests.fixtures.models import train_tokenizer

TOOLS = """
{%- if tools %}{{ '<|im_start|>system\\n# Tools\\n' }}
{%- for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- elif message.role in ['system', 'user', 'assistant'] %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.reasoning_content %}{{ '<think>' + message.reasoning_content + '</think>' }}{% endif %}
{%- if message.content %}{{ message.content }}{% endif %}
{%- for call in message.tool_calls %}
{%- set call = call.function if call.function is defined else call %}
{{- '<tool_call>' }}{{ call | tojson }}{{ '</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
"""Knows tools, calls, results and reasoning, and leaves out turns of any other role."""


def tokenizer(template: str | None) -> Any:
    """A byte-level tokenizer with this chat template; it has `<s>` and `<|endoftext|>`, and adds neither."""
    special = ["<|endoftext|>", "<s>", "<|im_start|>", "<|im_end|>"]
    return train_tokenizer(special, chat_template=template, bos="<s>", eos="<|endoftext|>")


def row(**fields: Any) -> Row:
    """A well-formed row of these fields."""
    found = parse_row(fields, document=0, line=1, file="rows")
    assert isinstance(found, Row), found
    return found


def targets(tokens: Any, document: TokenizedDocument) -> list[str]:
    """The text of every unbroken run of target tokens."""
    runs: list[list[int]] = []
    before = False
    for token, is_target in zip(document.input_ids.tolist(), document.target_mask.tolist(), strict=True):
        if is_target and not before:
            runs.append([])
        if is_target:
            runs[-1].append(token)
        before = is_target
    return [str(tokens.decode(run)) for run in runs]
