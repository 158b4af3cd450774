"""Rank and alpha of an adapter: numbers, and the patterns of layer names that change them.

PEFT runs the keys of `rank_pattern` and `alpha_pattern` as regular expressions. They come from strangers,
so only keys that match in bounded time are let through: names with a little pattern syntax.
"""

from __future__ import annotations

import math
import re
from typing import Any

from peft.utils.other import get_pattern_key

from atomscope.steering.names import WRAPPERS
from atomscope_workers.models.folder import refuse

MAX_RANK = 8192
_MAX_PATTERNS = 1024
_MAX_LENGTH = 256
_MAX_QUANTIFIERS = 2
_MAX_GROUPS = 2
_MAX_QUANTIFIED_PATTERNS = 64
_ELEMENTS = re.compile(
    r"\^?(?:[A-Za-z0-9_|$-]|\\?\.|\\d|\[[0-9-]{1,20}\]|\((?:\?:)?|\)(?![*+?{])|(?<=[.\]d])[*+]\??)*"
)
_QUANTIFIER = re.compile(r"[*+]")


def check_rank_and_alpha(config: dict[str, Any], file: str) -> None:
    """Check `r`, `lora_alpha` and their patterns; raise `InvalidInput` (`invalid_config`)."""
    _check_rank(config.get("r"), file, "r")
    _check_alpha(config.get("lora_alpha"), file, "lora_alpha")
    for value in _patterns(config, file, "rank_pattern"):
        _check_rank(value, file, "rank_pattern")
    for value in _patterns(config, file, "alpha_pattern"):
        _check_alpha(value, file, "alpha_pattern")


def rank_and_alpha(config: dict[str, Any], module: str) -> tuple[int, float]:
    """Rank and alpha of the layer `module`, by the rule with which PEFT reads a checked `config`."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    return (
        ranks.get(get_pattern_key(list(ranks), module), config["r"]),
        alphas.get(get_pattern_key(list(alphas), module), config["lora_alpha"]),
    )


def _patterns(config: dict[str, Any], file: str, field: str) -> list[object]:
    table = config.get(field) or {}
    if not isinstance(table, dict) or len(table) > _MAX_PATTERNS:
        raise refuse(
            "invalid_config",
            f"an object of at most {_MAX_PATTERNS} layer names and numbers is expected",
            file=file,
            field=field,
        )
    keys = [str(key) for key in table]
    quantified = sum(1 for key in keys if _QUANTIFIER.search(key))
    for key in keys:
        if not _bounded(key) or quantified > _MAX_QUANTIFIED_PATTERNS:
            raise refuse(
                "invalid_config",
                f"layer names or simple patterns of them are expected, not {key[:_MAX_LENGTH]!r}",
                file=file,
                field=field,
            )
    return list(table.values())


def _bounded(pattern: str) -> bool:
    if not 0 < len(pattern) <= _MAX_LENGTH or _ELEMENTS.fullmatch(pattern) is None:
        return False
    if any(wrapper in pattern for wrapper in WRAPPERS):  # it would match no layer, and silently do nothing
        return False
    if len(_QUANTIFIER.findall(pattern)) > _MAX_QUANTIFIERS or pattern.count("(") > _MAX_GROUPS:
        return False
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except re.error:
        return False
    return True


def _check_rank(value: object, file: str, field: str) -> None:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise refuse(
            "invalid_config", f"a whole number from 1 to {MAX_RANK} is expected", file=file, field=field
        )


def _check_alpha(value: object, file: str, field: str) -> None:
    number = (type(value) is int and value >= 0) or (type(value) is float and 0 <= value < math.inf)
    if not number:
        raise refuse("invalid_config", "a finite number of at least 0 is expected", file=file, field=field)
