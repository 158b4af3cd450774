"""Rows to token ids and target masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from atomscope_workers.datasets.chat import OWN, ChatTokenizer, template_fault
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.datasets.offsets import covered, token_ids
from atomscope_workers.datasets.rows import Row


class RowTokenizer:
    """Turns rows into `TokenizedDocument`s of at most `max_length` tokens, cut from the end.

    A `chat` row's ids are exactly those of `tokenizer.apply_chat_template(messages, tools, tokenize=True)`,
    under the template that `chat_template` chooses. Targets are what the template's generation markers
    enclose, where it has them, else the assistant's content, calls and end of turn as
    `atomscope_workers.datasets.targets` finds them; a token counts when any of its characters does. A turn
    that the row says is not trained on has none.

    A `text` row's ids are those of `prompt + completion`, or of `text`, with no chat template: before them
    the beginning-of-text token where the tokenizer adds one by itself, behind them the end-of-text token
    where it has one, neither when it is there already. Targets are the tokens that hold a character of the
    completion, or every token of `text`, and the end-of-text token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        chat_template: str = OWN,
        *,
        boundary: int | None = None,
    ) -> None:
        """`chat_template` is as in `AuditConfig`: the tokenizer's own, a name, or the text of a template.

        `boundary` is the model's (`length_boundary`): more tokens than it are run of what is longer.

        Raises `InvalidInput` (`invalid_tokenizer`, `invalid_template`) where it cannot be used at all.
        """
        self._tokenizer: Any = tokenizer
        self._max_length = max_length
        self._boundary = max_length if boundary is None else boundary
        if not tokenizer.is_fast:
            raise template_fault(
                "invalid_tokenizer", "a tokenizer with a tokenizer.json is expected", "tokenizer.json"
            )
        self._chat = ChatTokenizer(tokenizer, chat_template)
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
        ids, mask = ids[: self._max_length], mask[: self._max_length]
        least = self._boundary + 1 if len(ids) > self._boundary else 0
        return TokenizedDocument(document=row.document, input_ids=ids, target_mask=mask, least=least)

    def prompt(self, row: Row) -> NDArray[np.int32]:
        """Ids of the row's first `n_prompt` turns, not cut: what the model is given to answer.

        Behind a conversation stands the template's generation prompt. Raises as a call does.
        """
        if row.form == "chat":
            return self._chat.prompt(row)
        text = "".join(message["content"] for message in row.messages[: row.n_prompt])
        ids: list[int] = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return token_ids(ids if ids[:1] == self._bos else [*self._bos, *ids])

    def _text(self, row: Row) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        texts: list[str] = [message["content"] for message in row.messages]
        prompt, whole = "".join(texts[: row.n_prompt]), "".join(texts)
        encoded = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = list(encoded["input_ids"])
        offsets: list[tuple[int, int]] = list(encoded["offset_mapping"])
        mask = covered(offsets, [(len(prompt), len(whole))])
        self.merged += any(begin < len(prompt) < end for begin, end in offsets)
        bos = [] if ids[:1] == self._bos else self._bos
        eos = self._tokenizer.eos_token_id
        tail = [] if eos is None or ids[-1:] == [eos] else [int(eos)]
        return (
            token_ids([*bos, *ids, *tail]),
            np.concatenate([np.zeros(len(bos), np.bool_), mask, np.ones(len(tail), np.bool_)]),
        )

    def _automatic_bos(self) -> list[int]:
        """The beginning-of-text token, where the tokenizer puts it before a text by itself."""
        bos = self._tokenizer.bos_token_id
        added: list[int] = list(self._tokenizer("a")["input_ids"])
        bare: list[int] = list(self._tokenizer("a", add_special_tokens=False)["input_ids"])
        return [int(bos)] if bos is not None and added[:1] == [bos] and bare[:1] != [bos] else []
