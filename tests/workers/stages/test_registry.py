"""Every stage has a function, and it is the one of that name."""

from __future__ import annotations

import inspect

from atomscope.types.work import FAN_OUT, STAGES
from atomscope_workers.stages.registry import STAGE_FUNCTIONS


def test_every_stage_is_run_by_the_module_of_its_name() -> None:
    assert tuple(STAGE_FUNCTIONS) == STAGES
    for stage, function in STAGE_FUNCTIONS.items():
        # What is done twice has one module.
        assert function.__module__ == f"atomscope_workers.stages.{stage.removesuffix('_again')}"
        assert function.__name__ == "run"
        assert list(inspect.signature(function).parameters) == ["ctx"]


def test_stages_that_fan_out_are_stages_and_come_after_the_plan() -> None:
    assert set(STAGES) > FAN_OUT
    assert STAGES[0] == "validate"
    assert STAGES[0] not in FAN_OUT
