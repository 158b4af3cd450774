"""Stages have units where there is something to do, and no more than share the work."""

from __future__ import annotations

import pytest

from atomscope.types.spec import AuditConfig
from atomscope.types.work import FAN_OUT, STAGES
from atomscope_workers.stages.planned_units import OF_DIRECTIONS, planned_units

PARAMETERS = {
    f"{name}.lora_{side}": shape for name in "qkv" for side, shape in (("A", (8, 64)), ("B", (64, 8)))
}
NO_DIRECTIONS = dict.fromkeys(OF_DIRECTIONS, 0)


def test_documents_that_are_compared_exactly_want_no_directions() -> None:
    assert planned_units(AuditConfig(exact_documents=100), 100, 7, PARAMETERS) == NO_DIRECTIONS


@pytest.mark.parametrize(
    ("shards", "directions", "units"),
    [
        (7, 8, 6),  # no more than there are parameters
        (3, 8, 3),
        (7, 64, 3),  # 3,072 numbers of a gradient are three times 16 a direction
        (7, 2048, 1),
    ],
)
def test_past_that_units_share_the_parameters(shards: int, directions: int, units: int) -> None:
    config = AuditConfig(exact_documents=100, directions=directions)
    found = planned_units(config, 5000, shards, PARAMETERS)
    assert found == {"along": units, "along_again": units}


@pytest.mark.parametrize("preconditioner", ["ekfac", "kfac"])
def test_kept_components_want_neither_directions_nor_sums_for_their_vectors(preconditioner: str) -> None:
    config = AuditConfig(preconditioner=preconditioner, exact_documents=100)  # type: ignore[arg-type]
    assert planned_units(config, 5000, 7, PARAMETERS) == NO_DIRECTIONS | {"combine": 0}


def test_a_refit_finds_no_directions_that_its_parent_holds_nor_sums_gradients_that_were_not_kept() -> None:
    config = AuditConfig(exact_documents=100, directions=2048)
    assert planned_units(config, 5000, 7, PARAMETERS, refit=True) == {"along": 1, "along_again": 1}
    assert planned_units(config, 5000, 7, PARAMETERS, refit=True, whitened=True) == NO_DIRECTIONS
    sketched = AuditConfig(exact_documents=100, gradients="sketch")
    found = planned_units(sketched, 5000, 7, PARAMETERS, refit=True, whitened=True)
    assert found == NO_DIRECTIONS | {"combine": 0}


def test_a_stage_that_does_not_fan_out_has_one_unit_at_most() -> None:
    for documents in (50, 5000):
        found = planned_units(AuditConfig(exact_documents=100), documents, 7, PARAMETERS)
        assert all(count <= (7 if stage in FAN_OUT else 1) for stage, count in found.items())
        assert not {STAGES[0], STAGES[-1]} & found.keys()
