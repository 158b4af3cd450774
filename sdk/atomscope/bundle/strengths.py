"""Strengths as callers give them: by atoms and behaviours, by index, or by what requests call them."""

from __future__ import annotations

import operator
from collections.abc import Mapping

from atomscope.bundle.atom_list import AtomAttributes
from atomscope.bundle.behaviour_list import BehaviourAttributes
from atomscope.errors import SteeringError
from atomscope.steering import Target, parse_target, real

Steerable = AtomAttributes | BehaviourAttributes | int | str
"""An atom, a behaviour, the index of an atom, or `7`, `atom:7`, `behaviour:3`."""

Strengths = (
    Mapping[Steerable, float]
    | Mapping[AtomAttributes, float]
    | Mapping[BehaviourAttributes, float]
    | Mapping[int, float]
    | Mapping[str, float]
)


def strengths_by_target(strengths: Strengths, audit_id: str | None = None) -> dict[Target, float]:
    """Strengths keyed by target.

    Raises `SteeringError` when a key is no atom and no behaviour, or one of another audit than `audit_id`, a
    strength is no number, or one is named twice.
    """
    found: dict[Target, float] = {}
    for key, strength in strengths.items():
        target = target_of(key, audit_id)
        if target in found:
            raise SteeringError(f"{target} was named twice")
        found[target] = real(target, strength)
    return found


def target_of(key: Steerable, audit_id: str | None = None) -> Target:
    """What a key names; raises `SteeringError` for what is no atom and no behaviour, or is another audit's.

    Indices of one audit mean something else in another.
    """
    target = _target(key)
    of = key.audit_id if isinstance(key, AtomAttributes | BehaviourAttributes) else None
    if of is not None and audit_id is not None and of != audit_id:
        raise SteeringError(f"{target} is of the audit {of}: only what {audit_id} found steers its adapter")
    return target


def _target(key: Steerable) -> Target:
    if isinstance(key, AtomAttributes):
        return Target("atom", key.index)
    if isinstance(key, BehaviourAttributes):
        return Target("behaviour", key.index)
    if isinstance(key, str):
        return parse_target(key)
    try:
        return Target("atom", operator.index(key))
    except TypeError as error:
        raise SteeringError(f"{key!r} is neither an atom, nor a behaviour, nor an index") from error
