"""The chat template that a trainer left beside an adapter: taken where it is asked for, else compared.

Trainers save the template that they rendered by (`chat_template.jinja`). Where the base model has another, an
audit under the base's would take gradients of texts that the adapter never saw.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from atomscope.errors import InvalidInput
from atomscope.input_files import ADAPTER_TEMPLATE
from atomscope.text import counted
from atomscope_workers.datasets.chat import MAX_TEMPLATE_CHARACTERS, OWN, ChatTokenizer, template_fault
from atomscope_workers.datasets.row import Row, RowFault

ADAPTER = "adapter"
"""The choice of the template beside the adapter."""
COMPARED = 100
"""Conversations on which two templates are compared, the first ones."""


def read_template(folder: Path) -> str | None:
    """The template in an adapter's folder; None without one.

    Raises `InvalidInput` (`invalid_template`) for one that is too large or no template.
    """
    path = folder / ADAPTER_TEMPLATE
    if not path.is_file():
        return None
    if path.stat().st_size > 4 * MAX_TEMPLATE_CHARACTERS:
        raise template_fault(
            "invalid_template",
            f"at most {MAX_TEMPLATE_CHARACTERS} characters of template are accepted",
            ADAPTER_TEMPLATE,
        )
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise template_fault("invalid_template", "UTF-8 is expected", ADAPTER_TEMPLATE) from error
    if "{{" not in text and "{%" not in text:
        raise template_fault(
            "invalid_template", "a Jinja template, with `{{` or `{%` in it, is expected", ADAPTER_TEMPLATE
        )
    return text


def chosen_template(choice: str, folder: Path) -> str:
    """`AuditConfig.chat_template`, the text of the adapter's own in the place of its name.

    Raises `InvalidInput`: `no_chat_template` where the folder has none, and as `read_template` does.
    """
    if choice != ADAPTER:
        return choice
    template = read_template(folder)
    if template is None:
        raise template_fault(
            "no_chat_template",
            f"the adapter's folder has no {ADAPTER_TEMPLATE}, which `chat_template: {ADAPTER}` asks for: the "
            "text of a template, or another of the names, is expected",
        )
    return template


class TemplateBeside:
    """A template beside the adapter, compared with what an audit renders by."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        """Raises `InvalidInput` (`invalid_template`)."""
        self._chat = ChatTokenizer(tokenizer, template)
        self._looked = 0
        self._differing = 0

    def compare(self, row: Row, ids: NDArray[np.int32]) -> None:
        """Look at one row and its ids, from the end of which some may be cut."""
        if row.form != "chat" or self._looked == COMPARED:
            return
        self._looked += 1
        try:
            other = self._chat.ids(row)
        except (RowFault, InvalidInput):
            self._differing += 1
            return
        self._differing += not np.array_equal(other[: len(ids)], ids)

    def warnings(self) -> list[str]:
        if not self._differing:
            return []
        return [
            f"the chat template beside the adapter renders {self._differing} of the first "
            f"{counted(self._looked, 'conversation')} otherwise than the base model's, which the audit went "
            f"by: if the adapter was trained with its own, the setting `chat_template: {ADAPTER}` takes it"
        ]


def template_beside(tokenizer: PreTrainedTokenizerBase, choice: str, folder: Path) -> TemplateBeside | None:
    """What to compare with: nothing where the template was chosen by name or text, or there is no other.

    Raises `InvalidInput` as `read_template` does.
    """
    template = read_template(folder) if choice == OWN else None
    return None if template in (None, tokenizer.chat_template) else TemplateBeside(tokenizer, template)
