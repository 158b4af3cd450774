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
from atomscope.input_files import ADAPTER_TEMPLATE, is_own_file
from atomscope.text import counted
from atomscope_workers.datasets.chat import MAX_TEMPLATE_CHARACTERS, OWN, ChatTokenizer, template_fault
from atomscope_workers.datasets.row import Row, RowFault

ADAPTER = "adapter"
"""The choice of the template beside the adapter."""
COMPARED = 100
"""Conversations on which two templates are compared, the first ones."""


def template_file(folder: Path) -> Path | None:
    """The template of an adapter's folder, a file of its own; None without one."""
    path = folder / ADAPTER_TEMPLATE
    return path if is_own_file(path) else None


def read_template(path: Path) -> str:
    """A template beside an adapter.

    Raises `InvalidInput` (`invalid_template`) for one that is too large or no template.
    """
    if path.stat().st_size > 4 * MAX_TEMPLATE_CHARACTERS:
        raise _fault(f"at most {MAX_TEMPLATE_CHARACTERS} characters of template are accepted")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise _fault("UTF-8 is expected") from error
    if "{{" not in text and "{%" not in text:
        raise _fault("a Jinja template, with `{{` or `{%` in it, is expected")
    return text


def _fault(message: str) -> InvalidInput:
    return template_fault("invalid_template", message, f"{ADAPTER_TEMPLATE} beside the adapter")


def chosen_template(choice: str, folder: Path) -> str:
    """`AuditConfig.chat_template`, the text of the adapter's own in the place of its name.

    Raises `InvalidInput`: `no_chat_template` where the folder has none, and as `read_template` does.
    """
    if choice != ADAPTER:
        return choice
    path = template_file(folder)
    if path is None:
        raise template_fault(
            "no_chat_template",
            f"the adapter's folder has no {ADAPTER_TEMPLATE} of its own, which `chat_template: {ADAPTER}` "
            "asks for (an adapter uploaded before templates were kept has lost it): the text of a template, "
            "or another of the names, is expected",
        )
    return read_template(path)


class TemplateBeside:
    """A template beside the adapter, compared with what an audit renders by."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, limit: int) -> None:
        """`limit`: tokens kept of a document. Raises `InvalidInput` (`invalid_template`)."""
        self._chat = ChatTokenizer(tokenizer, template)
        self._limit = limit
        self._looked = 0
        self._differing = 0
        self._refused = 0
        self._reason = ""

    def compare(self, row: Row, ids: NDArray[np.int32]) -> None:
        """Look at one row and its ids."""
        if row.form != "chat" or self._looked == COMPARED:
            return
        self._looked += 1
        try:
            other = self._chat.ids(row)
        except (RowFault, InvalidInput) as error:
            self._refused += 1
            self._reason = self._reason or str(error)
            return
        self._differing += not np.array_equal(other[: self._limit], ids)

    def fault(self, row: Row, fault: RowFault) -> RowFault:
        """What is wrong with a row that the audit's own template refuses, and whether this one does not."""
        if row.form != "chat" or self._looked == COMPARED:
            return fault
        self._looked += 1
        try:
            self._chat(row)
        except (RowFault, InvalidInput):
            return fault
        self._differing += 1
        more = f"; the template beside the adapter, which `chat_template: {ADAPTER}` takes, accepts the row"
        return RowFault(fault.field, fault.message + more)

    def warnings(self) -> list[str]:
        if self._differing:
            others = f", and refuses {self._refused}" if self._refused else ""
            return [
                f"the chat template beside the adapter renders {self._differing} of the first "
                f"{counted(self._looked, 'conversation')} otherwise than the base model's, which the audit "
                f"went by{others}: if the adapter was trained with its own, the setting "
                f"`chat_template: {ADAPTER}` takes it"
            ]
        if self._refused:
            return [
                f"the chat template beside the adapter refuses {self._refused} of the first "
                f"{counted(self._looked, 'conversation')}, which the audit rendered by the base model's: "
                f"{self._reason}"
            ]
        return []


def template_beside(
    tokenizer: PreTrainedTokenizerBase, choice: str, folder: Path, limit: int
) -> tuple[TemplateBeside | None, list[str]]:
    """What to compare with, and warnings of what cannot be read.

    Nothing where the template was chosen by name or text, or there is no other; `limit` as above.
    """
    path = template_file(folder) if choice == OWN else None
    if path is None:
        return None, []
    try:
        template = read_template(path)
    except InvalidInput as error:
        return None, [f"{error.detail}; the audit went by the base model's template"]
    return None if template == tokenizer.chat_template else TemplateBeside(tokenizer, template, limit), []
