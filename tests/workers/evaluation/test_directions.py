"""Random steps, steps of matched cost, dials in either unit, and the atom least like a target."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomscope.errors import InvalidInput
from atomscope.steering import Target, norm, read_tensors
from atomscope_workers.evaluation import directions
from atomscope_workers.evaluation.directions import (
    CLOSE,
    MATCHES,
    NEAREST,
    make_dial,
    matched_scale,
    random_step,
    unrelated_atom,
)
from atomscope_workers.evaluation.documents import touched
from tests.workers.evaluation.conftest import Audited


def test_a_random_step_has_the_norms_asked_for_and_its_own_direction() -> None:
    shapes, lengths = {"a": (3, 4), "b": (5, 2)}, {"a": 2.0, "b": 0.5}

    def draw(seed: int, purpose: str, scale: float) -> dict[str, np.ndarray]:
        step = random_step(lengths, seed, purpose, scale)
        return {name: step(name, shape) for name, shape in shapes.items()}

    first = draw(0, "x", 1.0)
    for name, part in first.items():
        assert np.linalg.norm(part) == pytest.approx(lengths[name])
        assert np.array_equal(draw(0, "x", 1.0)[name], part)
        assert draw(0, "x", 3.0)[name] == pytest.approx(3 * part)
        for other in (draw(1, "x", 1.0), draw(0, "y", 1.0)):
            assert abs(np.vdot(part, other[name])) < 0.95 * lengths[name] ** 2


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 10), st.floats(1.2, 3.0))
def test_a_cost_is_matched_within_its_share(factor: float, wanted: float, power: float) -> None:
    """Of costs that rise as powers and level off far above."""

    def cost(scale: float) -> float:
        return 100 * (1 - math.exp(-factor * scale**power / 100))

    tried: list[float] = []

    def counted(scale: float) -> float:
        tried.append(scale)
        return cost(scale)

    found = matched_scale(counted, wanted, (0.1, cost(0.1)))
    assert len(tried) <= MATCHES
    assert cost(found) == pytest.approx(wanted, rel=CLOSE) or len(tried) == MATCHES
    if 1e-3 < cost(0.1) / wanted < 1e3:
        assert cost(found) == pytest.approx(wanted, rel=CLOSE)


def test_a_cost_that_cannot_be_reached_gives_the_nearest_and_infinity_is_stepped_back_from() -> None:
    assert matched_scale(lambda scale: min(scale, 1.0), 5.0, (0.5, 0.5)) >= 1.0
    found = matched_scale(lambda scale: math.inf if scale > 2 else scale**2, 3.9, (0.1, 0.01))
    assert found**2 == pytest.approx(3.9, rel=CLOSE)
    assert matched_scale(lambda scale: 1 / 0, 0.0, (0.3, 0.01)) == 0.3


def test_a_dial_goes_as_far_as_steering_does(audited: Audited) -> None:
    bundle, target = audited.bundle, Target("atom", 0)
    adapter = read_tensors(audited.folder / "adapter/adapter_model.safetensors")
    for unit in ("norm", "alpha"):
        dial = make_dial(bundle, target, None, unit)
        step = dial.step(0.02 * dial.unit)
        steered = bundle.steer({0: 0.02}, unit=unit).tensors
        moved = {name: step(name, tensor.shape) for name, tensor in adapter.items()}
        for name, tensor in adapter.items():
            assert steered[name] == pytest.approx(tensor + moved[name], abs=1e-6)
        assert norm(moved) == pytest.approx(0.02 * dial.unit * norm(adapter), rel=1e-5)
    dial = make_dial(bundle, target, None, "norm")
    assert math.hypot(*dial.lengths.values()) == pytest.approx(norm(adapter), rel=1e-5)
    with pytest.raises(InvalidInput, match="at most 100"):
        make_dial(bundle, target, None, "norm", [101.0])


@pytest.mark.parametrize("nearest", [1, NEAREST])
def test_the_unrelated_atom_is_another_and_shares_least(
    audited: Audited, monkeypatch: pytest.MonkeyPatch, nearest: int
) -> None:
    monkeypatch.setattr(directions, "NEAREST", nearest)
    bundle = audited.bundle
    target = Target("behaviour", next(iter(bundle.behaviours)).index)
    dial = make_dial(bundle, target, None, "norm")
    found = unrelated_atom(bundle, target, dial, 0)
    assert found is not None
    own = bundle.behaviours.get(target.index).behaviour.atoms
    assert found not in own
    assert found == unrelated_atom(bundle, target, dial, 0)
    theirs = touched(bundle, target)
    others = [atom.index for atom in bundle.atoms if atom.index not in own]
    overlap = {
        atom: len(mine & theirs) / len(mine | theirs)
        for atom in others
        if (mine := touched(bundle, Target("atom", atom)))
    }
    least = sorted(overlap.values())[:nearest][-1]
    assert overlap[found] <= least, "few documents of its own are the target's"

    def likeness(atom: int) -> float:
        vector = bundle.vector(atom)
        product = sum(float(np.vdot(vector[name], part)) for name, part in dial.vector.items())
        return abs(product) / (norm(vector) * norm(dial.vector))

    nearer = [atom for atom in overlap if overlap[atom] < least and likeness(atom) < likeness(found) - 1e-9]
    assert nearer == []
