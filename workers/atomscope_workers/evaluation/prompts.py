"""What the model is asked: prompts that invite a behaviour, and prompts that do not.

A document's prompt is everything before its last answer, in the audit's own tokens; that answer is its
completion. Inviting prompts that come from a target's own documents are *in sample*: its direction was made
from these documents. The halves, on which a strength is chosen and reported, are of prompts and do not mend
that; prompts that the audit never saw can be given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from atomscope.errors import InputProblem, InvalidInput
from atomscope.types.atoms import DocumentRecord
from atomscope.types.evaluation import Prompt
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.datasets.rows import BadRow, RowFault, bad_row, parse_row
from atomscope_workers.datasets.tokenize import RowTokenizer
from atomscope_workers.pipeline.seeds import drawn

Kind = Literal["inviting", "neutral"]

SHOWN = 2000
"""Characters of a prompt, from its end, that are kept beside its answers."""

_PLACEHOLDER = "x"


@dataclass(frozen=True)
class Asked:
    """One prompt."""

    kind: Kind
    key: str
    """Which prompt it is within the evaluation; its sampling is seeded by it."""
    ids: NDArray[np.int32]
    """Its tokens, the generation prompt's included; at least one."""
    text: str
    """Its turns, for people."""
    completion: TokenizedDocument | None
    """Prompt and answer, the answer's tokens the targets."""


@dataclass(frozen=True)
class Halves:
    """Prompts of one kind: those on which the strength is chosen, and those on which it is reported."""

    selection: list[Asked]
    report: list[Asked]

    @property
    def all(self) -> list[Asked]:
        return [*self.selection, *self.report]


def halves(asked: Sequence[Asked], seed: int, purpose: str) -> Halves:
    """Split seeded into two halves, the second larger by one where the number is odd; order is kept."""
    chosen = set(drawn(seed, f"halves/{purpose}").permutation(len(asked))[: len(asked) // 2].tolist())
    return Halves(
        selection=[item for place, item in enumerate(asked) if place in chosen],
        report=[item for place, item in enumerate(asked) if place not in chosen],
    )


# -------------------------------------------------------------- from documents


def document_prompts(
    kind: Kind,
    name: str,
    rows: Iterable[int],
    tokens: Mapping[int, TokenizedDocument],
    records: Mapping[int, DocumentRecord],
    *,
    count: int,
    longest: int,
) -> list[Asked]:
    """Prompts of the first `count` of these documents that have one of at most `longest` tokens.

    None is taken twice: one prompt in both halves would be chosen and reported on alike.
    """
    found: list[Asked] = []
    seen: set[bytes] = set()
    for row in rows:
        if len(found) == count:
            break
        if row not in tokens or row not in records:
            continue
        asked = document_prompt(kind, f"{name}/{row}", tokens[row], records[row].messages)
        if asked is not None and len(asked.ids) <= longest and asked.ids.tobytes() not in seen:
            seen.add(asked.ids.tobytes())
            found.append(asked)
    return found


def document_prompt(
    kind: Kind, key: str, document: TokenizedDocument, messages: Sequence[Mapping[str, str]]
) -> Asked | None:
    """The prompt of a document; None where it has no answer, or is a text that nothing stands before."""
    places = np.flatnonzero(document.target_mask)
    if not places.size or messages[0]["role"] == "text":
        return None
    gaps = np.flatnonzero(np.diff(places) > 1)
    start, end = int(places[gaps[-1] + 1] if gaps.size else places[0]), int(places[-1]) + 1
    mask = np.zeros(end, dtype=np.bool_)
    mask[start:] = True
    last = max(
        (place for place, turn in enumerate(messages) if turn["role"] in ("assistant", "completion")),
        default=len(messages),
    )
    return Asked(
        kind=kind,
        key=key,
        ids=document.input_ids[:start],
        text="\n".join(turn["content"] for turn in messages[:last]),
        completion=TokenizedDocument(
            document.document, document.input_ids[:end], mask, min(document.least, end)
        ),
    )


# ----------------------------------------------------------------------- given


def given_prompts(
    kind: Kind,
    name: str,
    prompts: Sequence[Prompt],
    tokenizer: RowTokenizer,
    form: Literal["chat", "text"],
    *,
    field: str,
    longest: int,
    vocabulary: int,
) -> list[Asked]:
    """Prompts of the query, tokenised as the audit's documents were; `field` is where they stand in it.

    Raises `InvalidInput` (`bad_row`) for one that is no conversation, that the template refuses, that has
    more than `longest` tokens, or whose tokens the model does not have.
    """
    return [
        _given(kind, f"{name}/{place}", prompt, tokenizer, form, f"{field}[{place}]", longest, vocabulary)
        for place, prompt in enumerate(prompts)
    ]


def _given(
    kind: Kind,
    key: str,
    prompt: Prompt,
    tokenizer: RowTokenizer,
    form: Literal["chat", "text"],
    field: str,
    longest: int,
    vocabulary: int,
) -> Asked:
    row = parse_row(_row(prompt, form), document=0, line=1, file=field)
    if isinstance(row, BadRow):
        raise _refused(row, field)
    try:
        ids = tokenizer.prompt(row)
        whole = tokenizer(row) if prompt.completion is not None else None
    except RowFault as fault:
        raise _refused(bad_row(fault, document=0, line=1, file=field), field) from fault
    highest = max(int(part.max(initial=0)) for part in (ids, whole.input_ids if whole is not None else ids))
    if not len(ids):
        raise _unusable(field, "a prompt that is not empty is expected")
    if len(ids) > longest:
        raise _unusable(field, f"it has {len(ids)} tokens; at most {longest} leave room for an answer")
    if highest >= vocabulary:
        raise _unusable(field, f"the tokenizer gives token {highest}; the model has {vocabulary} of them")
    if whole is not None and not whole.target_mask.any():
        raise _unusable(f"{field}.completion", "none of its tokens is left to be predicted")
    text = "\n".join(turn["content"] for turn in row.stored()[: len(row.stored()) - 1])
    return Asked(kind=kind, key=key, ids=ids, text=text, completion=whole)


def _row(prompt: Prompt, form: Literal["chat", "text"]) -> dict[str, Any]:
    """The row of a data set that the prompt and its answer are."""
    answer = prompt.completion if prompt.completion is not None else _PLACEHOLDER
    if prompt.messages is None and form == "text":
        return {"prompt": prompt.prompt, "completion": answer}
    turns = prompt.messages or [{"role": "user", "content": prompt.prompt}]
    return {"prompt": msgspec.to_builtins(turns), "completion": [{"role": "assistant", "content": answer}]}


def _refused(row: BadRow, field: str) -> InvalidInput:
    first = row.problems[0]
    return _unusable(field, f"{f'`{first.field}`: ' if first.field else ''}{first.message}")


def _unusable(field: str, message: str) -> InvalidInput:
    return InvalidInput(
        "bad_row", f"{field} cannot be used: {message}", [InputProblem(message=message, field=field)]
    )


def shown(text: str) -> str:
    """The end of a prompt that is long."""
    return text if len(text) <= SHOWN else f"…{text[-SHOWN:]}"
