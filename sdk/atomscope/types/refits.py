"""A refit: the fit of an audit once more, under other settings, on the gradients that it stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from atomscope.types.presets import with_preset
from atomscope.types.spec import AuditConfig, Preconditioner

EXTRACTION_SETTINGS = (
    "max_length",
    "on_bad_row",
    "row_form",
    "chat_template",
    "dtype",
    "gradients",
    "token_budget",
    "shard_documents",
)
"""Settings that decide what is extracted: a refit has those of its parent."""

WHITENING_SETTINGS: dict[Preconditioner, tuple[str, ...]] = {
    "ekfac-full": ("preconditioner", "damping", "exact_documents", "directions", "sketch_columns"),
    "ekfac": ("preconditioner", "damping", "components", "sketch_columns"),
    "kfac": ("preconditioner", "components", "sketch_columns"),
}
"""Settings that decide what is whitened and sketched: of a sketch, a refit has those of its parent."""


_DRAWN = ("exact_documents", "directions", "sketch_columns")


class NeedsExtraction(ValueError):  # noqa: N818
    """A setting that only a whole audit can change, of this parent at least; `setting` names it."""

    def __init__(self, setting: str, detail: str) -> None:
        super().__init__(detail)
        self.setting = setting


def refit_config(parent: AuditConfig, settings: Mapping[str, Any], preset: str | None = None) -> AuditConfig:
    """The settings of a refit: the parent's, or a preset's, those given in their place.

    Raises `NeedsExtraction` for a setting that needs an extraction of its own, `ValueError` for an unknown
    preset, `msgspec.ValidationError` for an unknown or wrong setting.
    """
    own: dict[str, Any] = msgspec.to_builtins(parent)
    extraction = {name: own[name] for name in EXTRACTION_SETTINGS}
    if preset is None:
        found = msgspec.convert({**own, **settings}, AuditConfig)
    else:
        # A preset's columns and directions are a new audit's, and mean nothing to what was drawn already.
        drawn = {name: own[name] for name in _DRAWN} if parent.gradients == "sketch" else {}
        found = with_preset(preset, {**extraction, **drawn, **settings})
    for name, value in extraction.items():
        if getattr(found, name) != value:
            shown = value if not isinstance(value, str) or len(value) < 40 else "another text"
            raise NeedsExtraction(
                name,
                f"`{name}` decides what is extracted, and a refit extracts nothing: it keeps the audit's "
                f"{shown!r}. Run a whole audit for another",
            )
    if parent.gradients == "sketch":
        for name in WHITENING_SETTINGS[parent.preconditioner]:
            if getattr(found, name) != own[name]:
                raise NeedsExtraction(
                    name,
                    f"`{name}` decides how gradients are whitened and sketched, and this audit was made with "
                    f"`gradients: sketch`: a refit keeps its {own[name]!r}. Run a whole audit for another",
                )
    return found
