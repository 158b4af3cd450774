"""Rows to token ids and target masks, by the tokenizer's own chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from atomscope.errors import InputProblem, InvalidInput
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.datasets.rows import Row, RowFault
from atomscope_workers.datasets.targets import NoTurnBefore, RewritesTurns, target_spans

MAX_TEMPLATE_CHARACTERS = 256 * 2**10
MAX_RENDERED_CHARACTERS = 64 * 2**20

_MARKERS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_TEMPLATE_FILE = "chat_template"

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


class RowTokenizer:
    """Turns rows into `TokenizedDocument`s of at most `max_length` tokens, cut from the end.

    A `chat` row's ids are exactly those of `tokenizer.apply_chat_template(messages, tokenize=True)`.
    Targets are what the template's generation markers enclose, where it has them, else the assistant's
    content and end of turn as `atomscope_workers.datasets.targets` finds them; a token counts when any of
    its characters does.

    A `text` row's ids are those of `prompt + completion` with no chat template: before them the
    beginning-of-text token where the tokenizer adds one by itself, behind them the end-of-text token
    where it has one, neither when it is there already. Targets are the tokens that hold a character of
    the completion, and the end-of-text token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Raises `InvalidInput` (`invalid_tokenizer`, `invalid_template`) where it cannot be used at all."""
        self._tokenizer: Any = tokenizer
        self._max_length = max_length
        if not tokenizer.is_fast:
            raise _template_fault(
                "invalid_tokenizer", "a tokenizer with a tokenizer.json is expected", "tokenizer.json"
            )
        self._template = self._read_template()
        self._has_markers = self._template is not None and _MARKERS.search(self._template) is not None
        self._bos: list[int] = self._automatic_bos()
        self.truncated = 0
        """Documents that were cut so far."""
        self.merged = 0
        """`text` rows so far in which one token holds characters of both prompt and completion."""

    def __call__(self, row: Row) -> TokenizedDocument:
        """Tokenise one row.

        Raises `RowFault` for a row that the template refuses, and `InvalidInput` where no row of its kind
        can be used: `no_chat_template`, `invalid_template`, `template_rewrites_turns`.
        """
        ids, mask = self._chat(row) if row.form == "chat" else self._text(row)
        if len(ids) > self._max_length:
            self.truncated += 1
        mask[:1] = False  # nothing predicts the first token
        return TokenizedDocument(
            document=row.document, input_ids=ids[: self._max_length], target_mask=mask[: self._max_length]
        )

    # ------------------------------------------------------------ chat rows

    def _chat(self, row: Row) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        if self._template is None:
            raise _template_fault(
                "no_chat_template", "a tokenizer with a chat template is needed for conversations"
            )
        try:
            return self._marked(row) if self._has_markers else self._spanned(row)
        except (jinja2.TemplateSyntaxError, jinja2.exceptions.SecurityError) as error:
            raise _template_fault(
                "invalid_template", f"the template cannot be used ({_first_line(error)})"
            ) from error
        except RewritesTurns as error:
            raise _template_fault(
                "template_rewrites_turns",
                f"it renders turn {error.turn} of row {row.document} otherwise once a later turn follows, so "
                "targets cannot be placed; a template that keeps earlier turns, or one with generation "
                "markers, is accepted",
            ) from error
        except NoTurnBefore as error:
            raise RowFault(
                "messages[0]", "a conversation that begins with a system or user turn is expected"
            ) from error
        except _TEMPLATE_FAULTS as error:
            raise RowFault("messages", f"the chat template refuses it ({_first_line(error)})") from error

    def _spanned(self, row: Row) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        messages = list(row.messages)
        full = self._render(messages, False)
        spans = target_spans(messages, full, self._render, row.n_prompt)
        encoded = self._tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, tokenizer_kwargs={"return_offsets_mapping": True}
        )
        return _ids(encoded["input_ids"]), _covered(encoded["offset_mapping"], spans)

    def _marked(self, row: Row) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        messages = list(row.messages)
        encoded = self._tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids = _ids(encoded["input_ids"])
        mask = np.array(encoded["assistant_masks"], dtype=np.bool_)
        if row.n_prompt:
            mask[: self._prompt_tokens(messages, row.n_prompt)] = False
        return ids, mask

    def _prompt_tokens(self, messages: list[dict[str, str]], n_prompt: int) -> int:
        """Tokens that lie wholly within the rendered prompt."""
        full = self._render(messages, False)
        prompt = self._render(messages[:n_prompt], True)
        if not full.startswith(prompt):
            raise RewritesTurns(n_prompt - 1)
        encoded = self._tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)
        return sum(1 for _, end in encoded["offset_mapping"] if end <= len(prompt))

    def _render(self, messages: Sequence[dict[str, str]], generation_prompt: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generation_prompt
        )
        if len(text) > MAX_RENDERED_CHARACTERS:
            raise ValueError(f"it renders more than {MAX_RENDERED_CHARACTERS} characters")
        return text

    def _read_template(self) -> str | None:
        if not self._tokenizer.chat_template:
            return None
        try:
            template: str = self._tokenizer.get_chat_template()
        except ValueError as error:  # several named templates, none of them `default`
            raise _template_fault("invalid_template", _first_line(error)) from error
        if len(template) > MAX_TEMPLATE_CHARACTERS:
            raise _template_fault(
                "invalid_template", f"at most {MAX_TEMPLATE_CHARACTERS} characters of template are accepted"
            )
        return template

    # ------------------------------------------------------------ text rows

    def _text(self, row: Row) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        prompt, completion = (turn["content"] for turn in row.messages)
        encoded = self._tokenizer(prompt + completion, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = list(encoded["input_ids"])
        offsets: list[tuple[int, int]] = list(encoded["offset_mapping"])
        span = (len(prompt), len(prompt) + len(completion))
        mask = _covered(offsets, [span])
        self.merged += any(begin < span[0] < end for begin, end in offsets)
        bos = [] if ids[:1] == self._bos else self._bos
        eos = self._tokenizer.eos_token_id
        tail = [] if eos is None or ids[-1:] == [eos] else [int(eos)]
        return (
            _ids([*bos, *ids, *tail]),
            np.concatenate([np.zeros(len(bos), np.bool_), mask, np.ones(len(tail), np.bool_)]),
        )

    def _automatic_bos(self) -> list[int]:
        """The beginning-of-text token, where the tokenizer puts it before a text by itself."""
        bos = self._tokenizer.bos_token_id
        added: list[int] = list(self._tokenizer("a")["input_ids"])
        bare: list[int] = list(self._tokenizer("a", add_special_tokens=False)["input_ids"])
        return [int(bos)] if bos is not None and added[:1] == [bos] and bare[:1] != [bos] else []


def _ids(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def _covered(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Tokens that hold a character of a span; a token of no characters is never one."""
    table = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    mask = np.zeros(len(table), dtype=np.bool_)
    for begin, end in spans:
        mask |= (table[:, 1] > begin) & (table[:, 0] < end) & (table[:, 1] > table[:, 0])
    return mask


def _template_fault(code: str, message: str, file: str = _TEMPLATE_FILE) -> InvalidInput:
    return InvalidInput(code, f"{file}: {message}", [InputProblem(message=message, file=file)])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
