"""What is turned up or down: atoms and behaviours, by index, and how strongly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal

from atomscope.errors import SteeringError
from atomscope.types.steering import TARGET_KEY

Kind = Literal["atom", "behaviour"]


@dataclass(frozen=True, order=True)
class Target:
    """An atom or a behaviour of an audit."""

    kind: Kind
    index: int

    @property
    def key(self) -> str:
        """How it is written in requests and files: an atom `7`, a behaviour `behaviour:7`."""
        return str(self.index) if self.kind == "atom" else f"{self.kind}:{self.index}"

    def __str__(self) -> str:
        return f"{self.kind} {self.index}"


def parse_target(text: str) -> Target:
    """The target written as `7`, `atom:7` or `behaviour:3`; raises `SteeringError` for anything else."""
    found = TARGET_KEY.fullmatch(text)
    if found is None:
        raise SteeringError(f"{text[:50]!r} names no atom and no behaviour: write 7, atom:7 or behaviour:3")
    kind: Kind = "behaviour" if found[1] == "behaviour" else "atom"
    return Target(kind, int(found[2]))


def check_choice(name: str, given: object, accepted: Sequence[str]) -> None:
    """Raise `SteeringError` unless an option is one of those that are accepted."""
    if given not in accepted:
        raise SteeringError(f"{name}={given!r}: one of {', '.join(accepted)} is expected")


def real(target: Target, strength: object) -> float:
    """A strength as a float; raises `SteeringError` for what is no real number: text and truth values too."""
    if isinstance(strength, bool) or not isinstance(strength, Real):
        raise SteeringError(f"the strength of {target} is {strength!r}, not a number")
    try:
        return float(strength)
    except OverflowError as error:
        raise SteeringError(f"the strength of {target} is not a finite number") from error


def check_strengths(strengths: Mapping[Target, float]) -> None:
    """Raise `SteeringError` unless there is a strength, and each of them is a finite number."""
    if not strengths:
        raise SteeringError("no strength was given: name at least one atom or behaviour")
    for target, strength in strengths.items():
        if not math.isfinite(real(target, strength)):
            raise SteeringError(f"the strength of {target} is {strength}, not a finite number")
