"""Stages have units where there is something to do, and no more than share the work."""

from __future__ import annotations

import pytest

from atomscope.types.spec import AuditConfig
from atomscope.types.work import FAN_OUT, PLANNED
from atomscope_workers.stages.planned_units import OF_DIRECTIONS, planned_units

PARAMETERS = {
    f"{name}.lora_{side}": shape for name in "qkv" for side, shape in (("A", (8, 64)), ("B", (64, 8)))
}
NO_DIRECTIONS = dict.fromkeys(OF_DIRECTIONS, 0)


def test_documents_that_are_compared_exactly_want_no_directions() -> None:
    assert planned_units(AuditConfig(exact_documents=100), 100, 4, PARAMETERS) == NO_DIRECTIONS | {
        "combine": 4
    }


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
    assert found == {"along": units, "along_again": units, "combine": min(shards, len(PARAMETERS))}


def test_kept_components_want_neither_directions_nor_sums_for_their_vectors_and_kfac_no_lambda() -> None:
    config = AuditConfig(preconditioner="ekfac", exact_documents=100)
    assert planned_units(config, 5000, 7, PARAMETERS) == NO_DIRECTIONS | {"combine": 0}
    config = AuditConfig(preconditioner="kfac")
    assert planned_units(config, 5000, 7, PARAMETERS) == NO_DIRECTIONS | {"combine": 0, "lambdas": 0}


def test_a_refit_has_no_units_for_what_its_parent_holds_nor_for_gradients_that_were_not_kept() -> None:
    config = AuditConfig(exact_documents=100, directions=2048)
    along = {"along": 1, "along_again": 1, "combine": 6}
    assert planned_units(config, 5000, 7, PARAMETERS, refit=True) == along
    found = planned_units(config, 5000, 7, PARAMETERS, refit=True, measured=True)
    assert found == along | {"lambdas": 0}
    found = planned_units(config, 5000, 7, PARAMETERS, refit=True, whitened=True)
    assert found == NO_DIRECTIONS | {"combine": 6}
    sketched = AuditConfig(exact_documents=100, gradients="sketch")
    found = planned_units(sketched, 5000, 7, PARAMETERS, refit=True, whitened=True)
    assert found == NO_DIRECTIONS | {"combine": 0}


def test_what_is_planned_are_stages_whose_units_may_be_and_no_more_of_them_than_control_accepts() -> None:
    for preconditioner in ("ekfac-full", "kfac"):
        for documents in (50, 5000):
            config = AuditConfig(preconditioner=preconditioner, exact_documents=100)
            found = planned_units(config, documents, 7, PARAMETERS)
            assert found.keys() <= PLANNED
            assert all(count <= (7 if stage in FAN_OUT else 1) for stage, count in found.items())
