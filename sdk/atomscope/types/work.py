"""The messages between the control worker and the pipeline workers.

A *unit* is one stage of an audit, or one shard of a stage that fans out. Control sends a `UnitOrder`
to the `pipeline` queue; the worker answers with `Report`s on the `control` queue. A unit is held by a
lease that its heartbeats renew. When a lease expires, control sends the unit again under a higher
*fence*; reports under an older fence are rejected, so a unit is counted once whoever runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

MESSAGE_VERSION = 1

PIPELINE_QUEUE = "pipeline"
CONTROL_QUEUE = "control"
RUN_UNIT_TASK = "atomscope.pipeline.run_unit"
REPORT_TASK = "atomscope.control.report"

Stage = Literal[
    "validate",
    "extract",
    "eigenbases",
    "lambdas",
    "curvature",
    "project",
    "directions",
    "along",
    "directions_again",
    "along_again",
    "dictionary",
    "evidence",
    "combine",
    "vectors",
    "characterise",
    "report",
]
STAGES: tuple[Stage, ...] = (
    "validate",
    "extract",
    "eigenbases",
    "lambdas",
    "curvature",
    "project",
    "directions",
    "along",
    "directions_again",
    "along_again",
    "dictionary",
    "evidence",
    "combine",
    "vectors",
    "characterise",
    "report",
)
"""In order; a stage starts when every unit of the last one before it that has units has succeeded."""

FAN_OUT: frozenset[Stage] = frozenset(
    {"extract", "lambdas", "project", "along", "along_again", "combine", "vectors"}
)
"""Stages with a unit a shard, the others having one, but for what is `PLANNED`."""

PLANNED: frozenset[Stage] = frozenset(
    {"lambdas", "directions", "along", "directions_again", "along_again", "combine"}
)
"""Stages that have fewer units, or none, where `validate` finds that there is less to do."""


def unit_count(stage: Stage, shards: int, planned: Mapping[Stage, int]) -> int:
    """Units of a stage: what `validate` planned, else one, or one a shard. Of 0 the stage is passed over."""
    return planned.get(stage, shards if stage in FAN_OUT else 1)


class UnitOrder(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Control to worker: run this unit."""

    project_id: str
    audit_id: str
    attempt: int
    unit_id: str
    stage: Stage
    index: int
    fence: int
    work_prefix: str
    """Key prefix of the attempt; `atomscope.bundle.layout` says what lies under it."""
    spec_key: str
    winners: dict[str, list[int]]
    """For every finished stage, the winning fence of each of its units, in index order."""
    heartbeat_seconds: float
    v: int = MESSAGE_VERSION


class UnitReport(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of what a worker tells control. `sequence` rises by one with each report of a fence."""

    project_id: str
    audit_id: str
    attempt: int
    unit_id: str
    stage: Stage
    index: int
    fence: int
    sequence: int
    worker: str
    v: int = MESSAGE_VERSION


class UnitStarted(UnitReport, frozen=True, tag="started"):
    """The unit was taken; its lease starts."""


class UnitHeartbeat(UnitReport, frozen=True, tag="heartbeat"):
    """The unit is alive; its lease is renewed. Counts are of this unit."""

    done: int = 0
    total: int = 0
    unit: str = "documents"


class UnitSucceeded(UnitReport, frozen=True, tag="succeeded"):
    """Every output of the unit is in the store, its `unit.json` written last."""

    shards: int | None = None
    """Of `validate` only: the number of shards of the plan."""
    documents: int | None = None
    """Of `validate` only: documents that will be audited."""
    summary: dict[str, Any] = {}
    """Small facts for the audit's record: warnings of `validate`, counts of `report`.

    Of `validate`, `units` are those of `PLANNED` stages (`unit_count`).
    """


class UnitFailed(UnitReport, frozen=True, tag="failed"):
    """The unit cannot be done. `retryable` failures are sent again under a higher fence, to a limit."""

    code: str
    detail: str
    retryable: bool
    errors: list[dict[str, Any]] = []
    """Details of bad input: `file`, `line`, `field`, `message`."""
    nothing_to_audit: bool = False


class UnitAbandoned(UnitReport, frozen=True, tag="abandoned"):
    """The worker stopped because the audit is being canceled or the fence is no longer live."""


Report = UnitStarted | UnitHeartbeat | UnitSucceeded | UnitFailed | UnitAbandoned


def live_fence_key(unit_id: str) -> str:
    """Redis key that holds a unit's live fence; a worker whose fence differs stops without committing."""
    return f"atomscope:fence:{unit_id}"


def cancel_key(audit_id: str) -> str:
    """Redis key that exists while an audit is being canceled; workers read it between micro-batches."""
    return f"atomscope:cancel:{audit_id}"


def claim_key(unit_id: str, fence: int) -> str:
    """Redis key that a worker sets, if it is not there, before it runs a unit under a fence.

    One message may be delivered twice (kombu restores what a lost connection held; control sends
    again what the broker lost): only the worker that set the key runs it.
    """
    return f"atomscope:claim:{unit_id}:{fence}"


def order_id(unit_id: str, fence: int) -> str:
    """Id of the Celery message that carries a unit's order under a fence."""
    return f"{unit_id}.{fence}"


def redis_url(broker_url: str) -> str:
    """The broker's address as redis-py reads it: `redis+socket:///path?virtual_host=N` -> `unix:///path?db=N`."""
    if not broker_url.startswith("redis+socket://"):
        return broker_url
    return "unix://" + broker_url.removeprefix("redis+socket://").replace("virtual_host=", "db=")
