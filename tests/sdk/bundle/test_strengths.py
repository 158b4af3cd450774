"""Strengths as callers give them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest

from atomscope.bundle import AtomAttributes, BehaviourAttributes, strengths_by_target
from atomscope.errors import SteeringError
from atomscope.steering import Target
from atomscope.types.atoms import Atom, Behaviour
from tests.sdk.bundle.golden_bundle import ATOMS, BEHAVIOURS

ATOM = AtomAttributes(msgspec.structs.replace(ATOMS[0], index=7))
BEHAVIOUR = BehaviourAttributes(msgspec.structs.replace(BEHAVIOURS[0], index=7))


def test_strengths_are_named_by_atom_behaviour_index_or_text() -> None:
    found = strengths_by_target({ATOM: 1, BEHAVIOUR: -0.5, 0: 2.0, "behaviour:0": 3, "atom:12": 4.0})
    assert found == {
        Target("atom", 7): 1.0,
        Target("behaviour", 7): -0.5,
        Target("atom", 0): 2.0,
        Target("behaviour", 0): 3.0,
        Target("atom", 12): 4.0,
    }


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.int64(2), Fraction(1, 2)])
def test_any_real_number_is_a_strength(number: Any) -> None:
    found = strengths_by_target({7: number})[Target("atom", 7)]
    assert (found, type(found)) == (float(number), float)


@pytest.mark.parametrize(
    ("strengths", "told"),
    [
        ({"seven": 1.0}, "names no atom and no behaviour"),
        ({7.0: 1.0}, "neither an atom, nor a behaviour"),
        ({None: 1.0}, "neither an atom, nor a behaviour"),
        ({7: "much"}, "the strength of atom 7"),
        ({7: None}, "the strength of atom 7"),
        ({7: "0.1"}, "the strength of atom 7 is '0.1', not a number"),
        ({7: np.bool_(True)}, "the strength of atom 7"),
        ({7: 1j}, "the strength of atom 7"),
        ({7: 10**400}, "the strength of atom 7 is not a finite number"),
        ({BEHAVIOUR: True}, "the strength of behaviour 7"),
        ({ATOM: 1.0, 7: 2.0}, "atom 7 was named twice"),
        ({BEHAVIOUR: 1.0, "behaviour:7": 2.0}, "behaviour 7 was named twice"),
    ],
)
def test_strengths_that_mean_nothing_are_refused(strengths: Any, told: str) -> None:
    with pytest.raises(SteeringError, match=told):
        strengths_by_target(strengths)


@pytest.mark.parametrize("record", [ATOMS[0], BEHAVIOURS[0]], ids=["atom", "behaviour"])
def test_what_another_audit_found_is_refused(record: Atom | Behaviour) -> None:
    handle = (
        AtomAttributes(record, "aud_1") if isinstance(record, Atom) else BehaviourAttributes(record, "aud_1")
    )
    assert len(strengths_by_target({handle: 0.1}, "aud_1")) == 1
    with pytest.raises(SteeringError, match="is of the audit aud_1: only what aud_2 found"):
        strengths_by_target({handle: 0.1}, "aud_2")
