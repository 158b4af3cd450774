"""In how many columns gradients are sketched: more find more, and take more memory and time."""

from __future__ import annotations

from atomscope.types.spec import AuditConfig

FEWEST, MOST = 4096, 16_384
"""Columns under `sketch_columns: auto`."""
NUMBERS = 2**29
"""Numbers of all documents' sketches, unless the fewest columns are more: 2 GiB."""


def whitened_columns(config: AuditConfig, documents: int) -> int:
    """Columns in which so many documents' whitened gradients are sketched, and their words, if they are."""
    if config.sketch_columns != "auto":
        return config.sketch_columns
    room = NUMBERS // max(1, documents)
    return min(MOST, max(FEWEST, 1 << max(0, room.bit_length() - 1)))


def planned_directions(config: AuditConfig, documents: int) -> int:
    """Directions that are looked for, past `exact_documents`; documents of fewer dimensions have fewer."""
    return min(config.directions, whitened_columns(config, documents), documents)


def raw_columns(config: AuditConfig) -> int:
    """Columns in which raw gradients are sketched: for means of cosines, which more would hardly change."""
    return FEWEST if config.sketch_columns == "auto" else config.sketch_columns
