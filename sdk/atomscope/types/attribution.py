"""Attribution: from one prompt and its completion to the atoms, behaviours and documents that pull it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from atomscope.types.atoms import DocumentRef

MAX_QUERY_DOCUMENTS = 1000
MAX_QUERY_CHARACTERS = 1_000_000
MAX_QUERY_DEPTH = 32
"""Levels of lists and objects within `messages`."""

QueryText = Annotated[str, msgspec.Meta(max_length=MAX_QUERY_CHARACTERS)]


class AttributionQuery(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What is attributed: `prompt` and `completion`, or `messages`, as a row of a data set has them.

    Of messages, the assistant's turns are the completion. Two strings take the form that the audited data
    set has: a conversation of one question and one answer, or plain text. Raises `msgspec.ValidationError`
    where neither or both are given.
    """

    prompt: QueryText | None = None
    completion: QueryText | None = None
    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1, max_length=1024)] | None = None
    exact: bool = False
    """Rank every document by the cosine of its whitened gradient with the query's. Otherwise documents are
    ranked by the cosine of their codes, which reads no gradient."""
    documents: Annotated[int, msgspec.Meta(ge=0, le=MAX_QUERY_DOCUMENTS)] = 20
    """Documents to list."""

    def __post_init__(self) -> None:
        strings = self.prompt is not None or self.completion is not None
        if strings == (self.messages is not None):
            raise ValueError("`prompt` and `completion`, or `messages`, are expected")
        if strings and (self.prompt is None or not self.completion):
            raise ValueError("`prompt` and a `completion` that is not empty are expected together")
        if deeper_than(MAX_QUERY_DEPTH, self.messages):
            raise ValueError(f"`messages` are nested deeper than {MAX_QUERY_DEPTH} levels")


def deeper_than(limit: int, value: object) -> bool:
    """Whether lists and objects are nested in more levels than the limit."""
    level: list[Any] = [value]
    for _ in range(limit + 1):
        level = [
            item
            for each in level
            if isinstance(each, dict | list)
            for item in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)


class AttributedAtom(msgspec.Struct, kw_only=True, frozen=True):
    """An atom on which the query has a code."""

    atom: int
    """Index of the atom."""
    rank: int
    value: float
    """The query's code, as `coefficients.parquet` has them of documents."""
    cosine: float
    """Cosine of the query's whitened gradient with the atom; nearly so past `exact_documents`, where
    atoms are learned along directions."""
    behaviour: int | None
    keywords: list[str]
    label: str | None


class AttributedBehaviour(msgspec.Struct, kw_only=True, frozen=True):
    """A behaviour on which the query is strong."""

    behaviour: int
    """Index of the behaviour."""
    rank: int
    strength: float
    """Sum of the query's positive codes on its atoms, as documents have them; of a document only the three
    strongest are kept."""
    keywords: list[str]
    label: str | None


class AttributionResult(msgspec.Struct, kw_only=True, frozen=True):
    """What a query was traced to."""

    form: Literal["chat", "text"]
    n_tokens: int
    n_target_tokens: int
    loss: float
    """Summed cross-entropy of the completion under base and adapter, in nats."""
    base_loss: float
    """The same under the base alone: what the adapter takes off is what the fine-tune taught of it."""
    gradient_norm: float
    explained: float
    """Share of the query's whitened direction that the atoms rebuild, 0 to 1; low is "not in this data"."""
    exact: bool
    atoms: list[AttributedAtom]
    """By falling magnitude of the code."""
    behaviours: list[AttributedBehaviour]
    """By falling strength."""
    documents: list[DocumentRef]
    """Most alike first; `value` is the cosine, of whitened gradients with `exact`, else of codes."""
    warnings: list[str] = []
