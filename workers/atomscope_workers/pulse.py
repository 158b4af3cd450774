"""What a running unit sends and hears: reports to control, and whether it should go on."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import kombu.exceptions
import msgspec
import redis
from celery import Celery

from atomscope.types.jobs import JOB_REPORT_TASK, JobHeartbeat, JobOrder, JobReport
from atomscope.types.work import (
    CONTROL_QUEUE,
    FAN_OUT,
    REPORT_TASK,
    UnitHeartbeat,
    UnitOrder,
    UnitReport,
    cancel_key,
    live_fence_key,
)
from atomscope_workers.stages.context import Stopped

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""How often, at most, a unit looks whether it was stopped."""
TELL_SECONDS = 1.0
"""How often, at most, counts that changed are told between two heartbeats."""
PERSIST_SECONDS = 300.0
"""How long the end of a unit is told to a broker that does not answer, before the unit is given up."""
STALL_SECONDS = 3_600.0
"""How long a shard may stand still, by default, before its worker ends; while files are sent it does not."""
STALLED = 70
"""Exit status of a worker whose shard stood still."""
_AGAIN_SECONDS = 0.5
_NO_COUNTS = (0, 0, "documents")

UNREACHED = (redis.RedisError, kombu.exceptions.OperationalError, OSError)
"""What a broker that is down makes its clients raise."""


@dataclass(frozen=True)
class Lease:
    """What a worker holds while it runs an order."""

    subject: str
    """Id of the unit or job."""
    fence: int
    heartbeat_seconds: float
    audit_id: str
    identity: Mapping[str, Any]
    """Fields by which each of its reports names it."""
    heartbeat: type[UnitHeartbeat | JobHeartbeat]
    task: str
    """The task of control that takes the reports."""
    stall_seconds: float | None = None
    """How long it may stand still; None: for ever."""


def unit_lease(order: UnitOrder, stall_seconds: float = STALL_SECONDS) -> Lease:
    """The lease of a unit of an audit.

    Shards may stand still for `stall_seconds`. What is one unit's, such as a fit, has nothing to tell for
    as long as it takes.
    """
    names = ("project_id", "audit_id", "attempt", "unit_id", "stage", "index", "fence")
    return Lease(
        order.unit_id,
        order.fence,
        order.heartbeat_seconds,
        order.audit_id,
        {name: getattr(order, name) for name in names},
        UnitHeartbeat,
        REPORT_TASK,
        stall_seconds if order.stage in FAN_OUT else None,
    )


def job_lease(order: JobOrder) -> Lease:
    """The lease of a job."""
    names = ("project_id", "job_id", "fence")
    return Lease(
        order.job_id,
        order.fence,
        order.heartbeat_seconds,
        order.audit_id,
        {name: getattr(order, name) for name in names},
        JobHeartbeat,
        JOB_REPORT_TASK,
    )


def end_process() -> None:
    """End this process where it stands, and say in its log where that is.

    A thread cannot be stopped from without. Whoever looks after the process starts it anew.
    """
    faulthandler.dump_traceback()
    os._exit(STALLED)


class Pulse:
    """Reports on what is held, numbered, and its heartbeats, sent by a thread while it runs.

    Where nothing is heard of it for longer than its lease allows, `stalled` is called, once, and heartbeats
    end: its lease runs out, and another worker takes it.
    """

    def __init__(
        self,
        app: Celery,
        client: redis.Redis,
        lease: Lease,
        worker: str,
        closing: threading.Event,
        stalled: Callable[[], None] = end_process,
    ) -> None:
        self._app = app
        self._redis = client
        self._lease = lease
        self._worker = worker
        self._closing = closing
        self._stalled = stalled
        self._moved = time.monotonic()
        self._waiting = 0
        self._waiting_lock = threading.Lock()
        self._lock = threading.Lock()
        self._sequence = 0
        self._counts = _NO_COUNTS
        self._look_lock = threading.Lock()
        self._looked = float("-inf")
        self._stopped: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._moved = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End the heartbeats; none is sent after this returns."""
        self._ended.set()
        self._thread.join()

    def send(self, kind: type[UnitReport | JobReport], **facts: Any) -> None:  # noqa: ANN401
        """Send a report; raises one of `UNREACHED` when the broker is down."""
        with self._lock:
            self._sequence += 1
            report = kind(**self._lease.identity, sequence=self._sequence, worker=self._worker, **facts)
            self._app.send_task(self._lease.task, args=[msgspec.to_builtins(report)], queue=CONTROL_QUEUE)

    def insist(self, kind: type[UnitReport | JobReport], **facts: Any) -> None:  # noqa: ANN401
        """Send the report that ends it, again and again for `PERSIST_SECONDS` while the broker is down.

        After that it is given up: its lease has run out, and control has it done by another.
        """
        deadline = time.monotonic() + PERSIST_SECONDS
        while True:
            try:
                self.send(kind, **facts)
            except UNREACHED as error:
                if time.monotonic() > deadline or self._closing.is_set():
                    logger.warning("the end of %s could not be told: %s", self._lease.subject, error)
                    return
                time.sleep(_AGAIN_SECONDS)
            else:
                return

    def progress(self, done: int, total: int, unit: str) -> None:
        """Counts for the next heartbeat."""
        self._moved = time.monotonic()
        self._counts = (done, total, unit)

    @contextmanager
    def waiting(self) -> Generator[None]:
        """While files go over a network, which has limits of its own: nothing stands still meanwhile."""
        with self._waiting_lock:
            self._waiting += 1
        try:
            yield
        finally:
            self._moved = time.monotonic()
            with self._waiting_lock:
                self._waiting -= 1

    def checkpoint(self) -> None:
        """Raise `Stopped` when the audit is canceled, the fence is not live, or the worker is closing."""
        self._moved = time.monotonic()
        if self._closing.is_set():
            raise Stopped("the worker is shutting down")
        self._look()
        if self._stopped is not None:
            raise Stopped(self._stopped)

    def _look(self) -> None:
        """Read the flags in the broker, at most every `LOOK_SECONDS`; a broker that is down stops nothing."""
        with self._look_lock:
            if self._stopped is not None or time.monotonic() - self._looked < LOOK_SECONDS:
                return
            keys = [live_fence_key(self._lease.subject), cancel_key(self._lease.audit_id)]
            try:
                fence, canceled = cast("list[str | None]", self._redis.mget(keys))
            except UNREACHED as error:
                logger.warning("%s goes on without the broker: %s", self._lease.subject, error)
            else:
                if canceled is not None:
                    self._stopped = "the audit is being canceled"
                elif fence is not None and fence != str(self._lease.fence):
                    # A missing key says nothing: the broker lost it. The record decides in the end.
                    self._stopped = f"the live fence is {fence}, not {self._lease.fence}"
            self._looked = time.monotonic()

    def _stands_still(self) -> bool:
        allowed = self._lease.stall_seconds
        if allowed is None or self._waiting:  # looked at first: it ends with a move
            return False
        still = time.monotonic() - self._moved
        if still <= allowed:
            return False
        logger.error("%s has stood still for %.0f s: it is given up", self._lease.subject, still)
        return True

    def _beat(self) -> None:
        """Tell counts soon after they change, and that the unit is alive when they do not."""
        told, beaten = _NO_COUNTS, time.monotonic()
        ended = False
        while not ended:
            ended = self._ended.wait(min(TELL_SECONDS, self._lease.heartbeat_seconds))
            if not ended and self._stands_still():
                self._stalled()
                return
            due = not ended and time.monotonic() - beaten >= self._lease.heartbeat_seconds
            if not ended:
                self._look()
            counts = self._counts
            # The last counts are told too: those of many short units add up.
            if not due and counts == told:
                continue
            done, total, unit = counts
            try:
                self.send(self._lease.heartbeat, done=done, total=total, unit=unit)
            except UNREACHED as error:
                logger.warning("a heartbeat of %s was not sent: %s", self._lease.subject, error)
            else:
                told, beaten = counts, time.monotonic()
