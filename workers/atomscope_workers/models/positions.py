"""Rotary positions whose frequencies depend on the longest document of a batch.

`longrope` (Phi-3 with a long context) has one set of frequencies up to the length of its first training and
another beyond it, and transformers picks one for the whole batch. `dynamic` has a set for every length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import PretrainedConfig

from atomscope_workers.models.folder import refuse

_FIELDS = ("rope_parameters", "rope_scaling")
"""Where newer and older configurations keep the settings."""


def check_positions(config: dict[str, Any]) -> None:
    """Raise `InvalidInput` (`unsupported_architecture`) where a `config.json` has dynamic frequencies."""
    for field in _FIELDS:
        for settings in _rope_settings(config.get(field)):
            if "dynamic" in (settings.get("rope_type"), settings.get("type")):
                raise refuse(
                    "unsupported_architecture",
                    "rope_type 'dynamic' is not accepted, since it computes a document otherwise beside a "
                    "longer one; the other types are",
                    file="config.json",
                    field=field,
                )


def length_boundary(config: PretrainedConfig) -> int | None:
    """Tokens up to which the model reads a document otherwise than a longer one; None where it never does."""
    for settings in _rope_settings(getattr(config, "rope_parameters", None)):
        if settings.get("rope_type") == "longrope":
            return int(settings["original_max_position_embeddings"])
    return None


def _rope_settings(value: object) -> Iterator[dict[str, Any]]:
    """The settings themselves, or those of each kind of layer."""
    if isinstance(value, dict):
        yield value
        yield from (inner for inner in value.values() if isinstance(inner, dict))
