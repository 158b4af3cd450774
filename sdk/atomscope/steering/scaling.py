"""What a LoRA's product B A is multiplied by in each layer: rank, alpha and the patterns that change them.

PEFT runs the keys of `rank_pattern` and `alpha_pattern` as regular expressions. They come from strangers, so
only keys that match in bounded time are run: names with a little pattern syntax.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from atomscope.errors import SteeringError
from atomscope.steering.names import WRAPPERS
from atomscope.text import visible

MAX_PATTERNS = 1024
MAX_QUANTIFIED = 64
"""Patterns with a quantifier among them."""
_MAX_LENGTH = 256
_MAX_QUANTIFIERS = 2
_MAX_GROUPS = 2
_ELEMENTS = re.compile(
    r"\^?(?:[A-Za-z0-9_|$-]|\\?\.|\\d|\[[0-9-]{1,20}\]|\((?:\?:)?|\)(?![*+?{])|(?<=[.\]d])[*+]\??)*"
)
_QUANTIFIER = re.compile(r"[*+]")


def is_simple(pattern: str) -> bool:
    """Whether a pattern of layer names is one that matches in bounded time."""
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


def are_simple(patterns: list[str]) -> bool:
    """The same of all the patterns of a table, which may hold only so many."""
    quantified = sum(1 for pattern in patterns if _QUANTIFIER.search(pattern))
    return (
        len(patterns) <= MAX_PATTERNS
        and quantified <= MAX_QUANTIFIED
        and all(is_simple(pattern) for pattern in patterns)
    )


def rank_and_alpha(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Rank and alpha of the layer `module`, by the rule with which PEFT reads a checked `config`."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    return (
        ranks.get(_key_of(ranks, module), config["r"]),
        alphas.get(_key_of(alphas, module), config["lora_alpha"]),
    )


def scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What B A of the layer `module` is multiplied by: alpha / r; rank-stabilised LoRA takes the root of r.

    `rank` is that of its tensors. Raises `SteeringError` where `config` does not say alpha, says another
    rank, or holds patterns that are not simple.
    """
    for field in ("r", "lora_alpha"):
        if type(config.get(field)) not in (int, float):
            raise SteeringError(f"adapter_config.json: {field}: a number is expected")
    for field in ("rank_pattern", "alpha_pattern"):
        table = config.get(field) or {}
        if not isinstance(table, dict) or not are_simple([str(key) for key in table]):
            raise SteeringError(f"adapter_config.json: {field}: layer names and numbers are expected")
    said, alpha = rank_and_alpha(config, module)
    if said != rank:
        raise SteeringError(
            f"adapter_config.json: the rank of {visible(module)} is {said}, its tensors have {rank}"
        )
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise SteeringError(f"adapter_config.json: the alpha of {visible(module)} is no number")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _key_of(table: Mapping[str, Any], module: str) -> str:
    """The first pattern of the table that matches the layer, or else its name."""
    for key in table:
        if re.match(rf"(.*\.)?({key})$", module):
            return key
    return module
