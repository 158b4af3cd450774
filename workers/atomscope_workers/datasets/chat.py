"""Conversations to token ids and target masks, by a chat template."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from atomscope.errors import InputProblem, InvalidInput
from atomscope_workers.datasets.offsets import covered, token_ids, within
from atomscope_workers.datasets.row import REASONING, Message, Row, RowFault
from atomscope_workers.datasets.targets import (
    NoTurnBefore,
    Render,
    RewritesTurns,
    target_spans,
    turn_span,
)
from atomscope_workers.datasets.templates import NAMED_TEMPLATES

MAX_TEMPLATE_CHARACTERS = 256 * 2**10
MAX_RENDERED_CHARACTERS = 64 * 2**20
OWN = "tokenizer"
"""The choice of the tokenizer's own template."""

REWRITES_TURNS = "template_rewrites_turns"
"""Code of a template's fault that is one of the row too: others may render as they should."""
_MARKERS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_TEMPLATE_FILE = "chat_template"
_PLAIN_ROLES = ("system", "user", "assistant")

_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a template may raise while it renders a conversation that it does not accept."""


class ChatTokenizer:
    """Turns chat rows into ids and masks; `RowTokenizer` says by which rules."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, choice: str) -> None:
        """`choice` is `AuditConfig.chat_template`, a text in the place of `adapter`.

        Raises `InvalidInput` (`invalid_template`).
        """
        if choice == "adapter":
            raise ValueError("the template beside the adapter is to be given as its text")
        self._tokenizer: Any = tokenizer
        self._given = None if choice == OWN else NAMED_TEMPLATES.get(choice, choice)
        self._closing = [token.content for token in tokenizer.added_tokens_decoder.values()]
        self._rendered_roles: set[tuple[str, bool]] = set()
        if self._given is not None or tokenizer.chat_template:
            self._template(())

    def __call__(self, row: Row) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Ids and mask of one row, both of shape (length,); the mask's first token may be True.

        Raises `RowFault` for a row that the template refuses or would leave something out of, and
        `InvalidInput` where no chat row can be used.
        """
        with self._told(row) as template:
            self._refuse_unused(row, template)
            return self._marked(row) if _MARKERS.search(template) else self._spanned(row)

    def ids(self, row: Row) -> NDArray[np.int32]:
        """Ids alone, wherever the targets would be. Raises as a call does."""
        with self._told(row):
            return token_ids(self._encode(row)["input_ids"])

    def prompt(self, row: Row) -> NDArray[np.int32]:
        """Ids of the row's first `n_prompt` turns and the generation prompt. Raises as a call does."""
        with self._told(row) as template:
            self._refuse_unused(row, template)
            messages = row.messages[: row.n_prompt]
            text = self._render(row, messages, True)
            return token_ids(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    @contextmanager
    def _told(self, row: Row) -> Generator[str]:
        """Give the template for the row; what using it raises is told as a fault of the row or of it."""
        if self._given is None and not self._tokenizer.chat_template:
            raise template_fault(
                "no_chat_template",
                "conversations need a tokenizer with a chat template, or the setting `chat_template`: one of "
                f"{', '.join(NAMED_TEMPLATES)}, the text of a template, or `adapter` where the trainer left "
                "one beside the adapter (chat_template.jinja)",
            )
        template = self._template(row.tools)
        try:
            yield template
        except (jinja2.TemplateSyntaxError, jinja2.exceptions.SecurityError) as error:
            raise template_fault(
                "invalid_template", f"the template cannot be used ({first_line(error)})"
            ) from error
        except RewritesTurns as error:
            raise template_fault(
                REWRITES_TURNS,
                f"it renders turn {error.turn} of row {row.document} otherwise once a later turn follows, so "
                "targets cannot be placed; a template that keeps earlier turns, or one with generation "
                "markers, is accepted, and the setting `chat_template` may give it",
            ) from error
        except NoTurnBefore as error:
            raise RowFault(
                row.turns[0].field, "a conversation that begins with a system or user turn is expected"
            ) from error
        except _TEMPLATE_FAULTS as error:
            raise RowFault(row.field, f"the chat template refuses it ({first_line(error)})") from error

    def _spanned(self, row: Row) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        full = self._render(row, row.messages, False)
        turns = [turn for turn in _assistant_turns(row) if _is_target(row, turn)]
        spans = target_spans(row.messages, full, self._renderer(row), turns, self._closing)
        encoded = self._encode(row)
        return token_ids(encoded["input_ids"]), covered(encoded["offset_mapping"], spans)

    def _marked(self, row: Row) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        encoded = self._encode(row, return_assistant_tokens_mask=True)
        mask = np.array(encoded["assistant_masks"], dtype=np.bool_)
        mask &= ~within(encoded["offset_mapping"], self._untrained_spans(row))
        return token_ids(encoded["input_ids"]), mask

    def _untrained_spans(self, row: Row) -> list[tuple[int, int]]:
        """Characters of the prompt, and of the assistant's turns behind it that are no targets."""
        turns = [turn for turn in _assistant_turns(row) if turn >= row.n_prompt and not _is_target(row, turn)]
        if not turns and not row.n_prompt:
            return []
        full = self._render(row, row.messages, False)
        prompt = self._render(row, row.messages[: row.n_prompt], True) if row.n_prompt else ""
        if not full.startswith(prompt):
            raise RewritesTurns(row.n_prompt - 1)
        render = self._renderer(row)
        return [(0, len(prompt)), *(turn_span(row.messages, full, render, turn) for turn in turns)]

    def _refuse_unused(self, row: Row, template: str) -> None:
        """Raise `RowFault` for what the row has and the template would silently leave out."""
        if row.tools and not re.search(r"\btools\b", template):
            raise RowFault("tools", "the chat template does not use tools; one that does is expected")
        for turn in row.turns:
            if "tool_calls" in turn.message and not re.search(r"\btool_calls\b", template):
                raise RowFault(
                    f"{turn.field}.tool_calls",
                    "the chat template does not use calls; one that does is expected",
                )
            reasoning = next((name for name in REASONING if name in turn.message), None)
            if reasoning and not any(_uses(template, name) for name in REASONING):
                raise RowFault(
                    f"{turn.field}.{reasoning}",
                    "the chat template does not use reasoning; one that does, or no such field, is expected",
                )
            role = turn.message["role"]
            if role not in _PLAIN_ROLES and not self._renders(row, role):
                raise RowFault(f"{turn.field}.role", f"the chat template leaves out turns of the role {role}")

    def _renders(self, row: Row, role: str) -> bool:
        """Whether turns of the role show in what the template renders."""
        key = (role, bool(row.tools))
        if key not in self._rendered_roles:
            others = [message for message in row.messages if message["role"] != role]
            try:
                same = self._render(row, others, False) == self._render(row, row.messages, False)
            except _TEMPLATE_FAULTS:
                same = False  # rendered once more below, where a fault of the row itself is told
            if same:
                return False
            self._rendered_roles.add(key)
        return True

    def _encode(self, row: Row, **options: Any) -> Any:  # noqa: ANN401
        return self._tokenizer.apply_chat_template(
            list(row.messages),
            tools=list(row.tools) or None,
            chat_template=self._given,
            tokenize=True,
            return_dict=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
            **options,
        )

    def _renderer(self, row: Row) -> Render:
        def render(messages: Sequence[Message], generation_prompt: bool) -> str:
            return self._render(row, messages, generation_prompt)

        return render

    def _render(self, row: Row, messages: Sequence[Message], generation_prompt: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(
            list(messages),
            tools=list(row.tools) or None,
            chat_template=self._given,
            tokenize=False,
            add_generation_prompt=generation_prompt,
        )
        if len(text) > MAX_RENDERED_CHARACTERS:
            raise ValueError(f"it renders more than {MAX_RENDERED_CHARACTERS} characters")
        return text

    def _template(self, tools: Sequence[Message]) -> str:
        """The text of the template for rows with these tools."""
        try:
            template: str = self._tokenizer.get_chat_template(self._given, list(tools) or None)
        except ValueError as error:  # several named templates, none of them `default`
            raise template_fault("invalid_template", first_line(error)) from error
        if len(template) > MAX_TEMPLATE_CHARACTERS:
            raise template_fault(
                "invalid_template", f"at most {MAX_TEMPLATE_CHARACTERS} characters of template are accepted"
            )
        return template


def _assistant_turns(row: Row) -> list[int]:
    return [place for place, turn in enumerate(row.turns) if turn.message["role"] == "assistant"]


def _is_target(row: Row, turn: int) -> bool:
    return turn >= row.n_prompt and row.turns[turn].trained


def _uses(template: str, name: str) -> bool:
    """Whether a template reads a field of this name: `.name`, or the name in quotes."""
    return re.search(rf"""\.{name}\b|['"]{name}['"]""", template) is not None


def template_fault(code: str, message: str, file: str = _TEMPLATE_FILE) -> InvalidInput:
    """`InvalidInput` of one problem."""
    return InvalidInput(code, f"{file}: {message}", [InputProblem(message=message, file=file)])


def first_line(error: BaseException) -> str:
    """What an exception says, on one line of at most 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
