"""Rank and alpha of an adapter: numbers, and the patterns of layer names that change them."""

from __future__ import annotations

import math
from typing import Any

from atomscope.steering.scaling import MAX_PATTERNS, are_simple, is_simple
from atomscope_workers.models.folder import refuse

MAX_RANK = 8192
_SHOWN = 256


def check_rank_and_alpha(config: dict[str, Any], file: str) -> None:
    """Check `r`, `lora_alpha` and their patterns; raise `InvalidInput` (`invalid_config`)."""
    _check_rank(config.get("r"), file, "r")
    _check_alpha(config.get("lora_alpha"), file, "lora_alpha")
    for value in _patterns(config, file, "rank_pattern"):
        _check_rank(value, file, "rank_pattern")
    for value in _patterns(config, file, "alpha_pattern"):
        _check_alpha(value, file, "alpha_pattern")


def _patterns(config: dict[str, Any], file: str, field: str) -> list[object]:
    table = config.get(field) or {}
    if not isinstance(table, dict) or len(table) > MAX_PATTERNS:
        raise refuse(
            "invalid_config",
            f"an object of at most {MAX_PATTERNS} layer names and numbers is expected",
            file=file,
            field=field,
        )
    keys = [str(key) for key in table]
    if not are_simple(keys):
        # Of too many quantified ones, each alone may be simple.
        first = next((key for key in keys if not is_simple(key)), keys[-1])
        raise refuse(
            "invalid_config",
            f"layer names or simple patterns of them are expected, not {first[:_SHOWN]!r}",
            file=file,
            field=field,
        )
    return list(table.values())


def _check_rank(value: object, file: str, field: str) -> None:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise refuse(
            "invalid_config", f"a whole number from 1 to {MAX_RANK} is expected", file=file, field=field
        )


def _check_alpha(value: object, file: str, field: str) -> None:
    number = (type(value) is int and value >= 0) or (type(value) is float and 0 <= value < math.inf)
    if not number:
        raise refuse("invalid_config", "a finite number of at least 0 is expected", file=file, field=field)
