"""`atoms/labels.json`: every request for a label, exactly as it was sent, and what became of it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class LabelRequest(msgspec.Struct, kw_only=True, frozen=True):
    """One request: of one behaviour or one atom."""

    kind: Literal["behaviour", "atom"]
    index: int
    """Of the behaviour or atom, not its rank."""
    label: str | None
    """What became its label: the answer's first line, cleaned and cut; null where the request failed."""
    documents: list[int]
    """Rows of the data set whose excerpts were sent as its own."""
    contrast: list[int]
    """Rows sent beside them for contrast."""
    messages: list[dict[str, str]]
    """The prompt: `role` and `content` of each message."""
    answer: str | None
    """The answer's text, its beginning where it is long."""
    answered_model: str | None
    """The model that the endpoint says has answered."""
    failure: str | None
    """Why there is no label."""
    attempts: int
    """Times that the request was sent."""
    asked_at: str
    """RFC 3339, UTC."""


class Labels(msgspec.Struct, kw_only=True, frozen=True):
    """What `atoms/labels.json` holds."""

    url: str
    """The endpoint's base address; it holds no credentials."""
    model: str
    """The model that was asked for."""
    prompt_version: int
    """Version of the prompt's template."""
    options: dict[str, Any]
    """Further fields of every request, such as `temperature`."""
    requests: list[LabelRequest]
    """Behaviours by rank, then atoms by rank."""
    not_asked: int = 0
    """Behaviours and atoms past the operator's limit, or after the endpoint was given up."""
