"""The Celery application of the `pipeline` queue: takes orders, runs their stage, reports to control."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import Any, TypeVar

import msgspec
import redis
from celery import Celery, signals
from celery.exceptions import Reject
from kombu.entity import Queue

from atomscope.bundle.layout import bundle_prefix
from atomscope.errors import InvalidInput, NothingToAudit
from atomscope.store import ObjectStore, open_store
from atomscope.types.jobs import JOB_MESSAGE_VERSION, RUN_JOB_TASK, JobOrder
from atomscope.types.spec import ParentRef
from atomscope.types.work import (
    MESSAGE_VERSION,
    PIPELINE_QUEUE,
    RUN_UNIT_TASK,
    Stage,
    UnitAbandoned,
    UnitFailed,
    UnitOrder,
    UnitStarted,
    UnitSucceeded,
    claim_key,
    live_fence_key,
    redis_url,
)
from atomscope_workers.celery_context import StoreContext
from atomscope_workers.failures import failure
from atomscope_workers.held_folders import held_folder
from atomscope_workers.jobs import run_job_order
from atomscope_workers.pulse import STALL_SECONDS, UNREACHED, Pulse, job_lease, unit_lease
from atomscope_workers.stages.assemble import assemble_bundle
from atomscope_workers.stages.context import StageFunction, Stopped
from atomscope_workers.stages.retention import keeps_gradients

logger = logging.getLogger(__name__)

VISIBILITY_SECONDS = 86_400
"""Far above the longest shard: kombu is never what brings an order back. Leases are."""
CLAIM_SECONDS = 2 * VISIBILITY_SECONDS
SOCKET_SECONDS = 10.0

Order = TypeVar("Order", UnitOrder, JobOrder)


def make_app(broker_url: str) -> Celery:
    """The application that consumes orders and sends reports."""
    app = Celery("atomscope.pipeline", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_queues=[Queue(PIPELINE_QUEUE)],
        task_default_queue=PIPELINE_QUEUE,
        task_create_missing_queues=True,
        broker_transport_options={"visibility_timeout": VISIBILITY_SECONDS},
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        enable_utc=True,
    )
    return app


def add_tasks(
    app: Celery,
    broker_url: str,
    store_uri: str,
    stages: Mapping[Stage, StageFunction],
    stall_seconds: float = STALL_SECONDS,
) -> None:
    """Give the application its tasks; `app` runs units and jobs of the store at `store_uri`.

    A shard that stands still for `stall_seconds` ends the process.
    """
    client: redis.Redis = redis.Redis.from_url(
        redis_url(broker_url), decode_responses=True, socket_timeout=SOCKET_SECONDS
    )
    store = open_store(store_uri)
    worker = f"{socket.gethostname()}:{os.getpid()}"
    closing = threading.Event()

    def close(**_: Any) -> None:  # noqa: ANN401
        closing.set()

    signals.worker_shutting_down.connect(close, weak=False)

    def taken(subject: str, fence: int) -> bool:
        try:
            return claim(client, subject, fence, worker)
        except UNREACHED as error:
            raise Reject(f"the broker cannot be reached: {error}", requeue=True) from error

    @app.task(name=RUN_UNIT_TASK)
    def run_unit(order: dict[str, Any]) -> None:  # pyright: ignore[reportUnusedFunction]
        if closing.is_set():
            raise Reject("the worker is shutting down", requeue=True)
        decoded = decode_order(order)
        if decoded is None or not taken(decoded.unit_id, decoded.fence):
            return
        lease = unit_lease(decoded, stall_seconds)
        run_order(store, decoded, Pulse(app, client, lease, worker, closing), stages)

    @app.task(name=RUN_JOB_TASK)
    def run_job(order: dict[str, Any]) -> None:  # pyright: ignore[reportUnusedFunction]
        if closing.is_set():
            raise Reject("the worker is shutting down", requeue=True)
        decoded = decode_job(order)
        if decoded is not None and taken(decoded.job_id, decoded.fence):
            run_job_order(store, decoded, Pulse(app, client, job_lease(decoded), worker, closing))


def decode_order(message: Any) -> UnitOrder | None:  # noqa: ANN401
    """The order in a message; None for one of another version, which a worker of that version may take.

    Control misses the claim of an order that nobody took and sends it again.
    """
    return _decoded(message, UnitOrder, MESSAGE_VERSION)


def decode_job(message: Any) -> JobOrder | None:  # noqa: ANN401
    """The same of a job."""
    return _decoded(message, JobOrder, JOB_MESSAGE_VERSION)


def _decoded(message: Any, kind: type[Order], version: int) -> Order | None:  # noqa: ANN401
    try:
        order = msgspec.convert(message, kind, strict=True)
    except msgspec.ValidationError as error:
        logger.error("an order could not be read: %s", error)
        return None
    if order.v != version:
        logger.error("an order is of version %d, not %d", order.v, version)
        return None
    return order


def claim(client: redis.Redis, subject: str, fence: int, worker: str) -> bool:
    """Whether this worker may run a unit or job: the fence is live, and nobody took it up before."""
    live = client.get(live_fence_key(subject))
    if live is not None and live != str(fence):
        logger.info("an order of %s is out of date: fence %d, live is %s", subject, fence, live)
        return False
    if not client.set(claim_key(subject, fence), worker, nx=True, ex=CLAIM_SECONDS):
        logger.info("%s under fence %d has been taken already", subject, fence)
        return False
    return True


def run_order(
    store: ObjectStore, order: UnitOrder, pulse: Pulse, stages: Mapping[Stage, StageFunction]
) -> None:
    """Run one unit and report how it ended."""
    kind, facts = UnitFailed, dict[str, Any]()
    try:
        pulse.send(UnitStarted)
    except UNREACHED as error:  # the first heartbeat will say the same
        logger.warning("the start of %s was not told: %s", order.unit_id, error)
    pulse.start()
    try:
        kind, facts = UnitSucceeded, _run(store, order, pulse, stages)
    except Stopped as stop:
        logger.info("%s %d stopped: %s", order.stage, order.index, stop)
        kind, facts = UnitAbandoned, {}
    except InvalidInput as error:
        facts = failure(error) | {"nothing_to_audit": isinstance(error, NothingToAudit)}
    except Exception as error:  # whatever a hostile input provokes must reach the record of the audit
        logger.exception("%s %d failed", order.stage, order.index)
        facts = failure(error)
    finally:
        pulse.stop()
    pulse.insist(kind, **facts)


def _run(
    store: ObjectStore, order: UnitOrder, pulse: Pulse, stages: Mapping[Stage, StageFunction]
) -> dict[str, Any]:
    with ExitStack() as stack:
        scratch = stack.enter_context(held_folder())
        ctx = stack.enter_context(
            closing(StoreContext(store, order, scratch, pulse.progress, pulse.checkpoint, pulse.waiting))
        )
        pulse.checkpoint()
        result = stages[order.stage](ctx)
        pulse.checkpoint()
        if order.stage == "report":
            prefix = bundle_prefix(order.project_id, order.audit_id, order.attempt, order.fence)
            parent = ctx.spec.parent
            assemble_bundle(
                store,
                ctx.sources() | ctx.own_sources(),
                prefix,
                order.audit_id,
                keeps_gradients=keeps_gradients(ctx.spec.config),
                parent=parent.audit_id if isinstance(parent, ParentRef) else None,
                shared=ctx.shared(),
            )
        ctx.commit()
    first = order.stage == "validate"
    return {
        "shards": result.shards if first else None,
        "documents": result.documents if first else None,
        "summary": result.summary,
    }
