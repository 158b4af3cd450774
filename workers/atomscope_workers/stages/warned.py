"""Warnings of a stage, kept for the report at the end."""

from __future__ import annotations

import msgspec

from atomscope.types.work import STAGES, Stage
from atomscope_workers.stages.context import StageContext, UnitResult


def kept(stage: Stage) -> str:
    """Work path of a stage's warnings."""
    return f"work/warnings/{stage}.json"


def finish(ctx: StageContext, warnings: list[str]) -> UnitResult:
    """The result of a stage that has warnings: they go to control now and into the report later."""
    keep(ctx, warnings)
    return UnitResult(summary={"warnings": warnings})


def keep(ctx: StageContext, warnings: list[str]) -> None:
    """Store the warnings of this stage."""
    ctx.write_bytes(kept(ctx.stage), msgspec.json.encode(warnings))


def earlier(ctx: StageContext) -> list[str]:
    """The warnings of every finished stage, in order."""
    written = set(ctx.outputs())
    found: list[str] = []
    for stage in STAGES:
        if kept(stage) in written:
            found += msgspec.json.decode(ctx.read(kept(stage)).read_bytes(), type=list[str])
    return found
