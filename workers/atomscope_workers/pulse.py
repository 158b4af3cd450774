"""What a running unit sends and hears: reports to control, and whether it should go on."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, cast

import kombu.exceptions
import msgspec
import redis
from celery import Celery

from atomscope.types.work import (
    CONTROL_QUEUE,
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
_AGAIN_SECONDS = 0.5

UNREACHED = (redis.RedisError, kombu.exceptions.OperationalError, OSError)
"""What a broker that is down makes its clients raise."""


class Pulse:
    """Reports of one unit, numbered, and its heartbeats, sent by a thread while the unit runs."""

    def __init__(
        self, app: Celery, client: redis.Redis, order: UnitOrder, worker: str, closing: threading.Event
    ) -> None:
        self._app = app
        self._redis = client
        self._order = order
        self._worker = worker
        self._closing = closing
        self._lock = threading.Lock()
        self._sequence = 0
        self._counts = (0, 0, "documents")
        self._look_lock = threading.Lock()
        self._looked = float("-inf")
        self._stopped: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the heartbeats; none is sent after this returns."""
        self._ended.set()
        self._thread.join()

    def send(self, kind: type[UnitReport], **facts: Any) -> None:  # noqa: ANN401
        """Send a report; raises one of `UNREACHED` when the broker is down."""
        with self._lock:
            self._sequence += 1
            order = self._order
            report = kind(
                project_id=order.project_id,
                audit_id=order.audit_id,
                attempt=order.attempt,
                unit_id=order.unit_id,
                stage=order.stage,
                index=order.index,
                fence=order.fence,
                sequence=self._sequence,
                worker=self._worker,
                **facts,
            )
            self._app.send_task(REPORT_TASK, args=[msgspec.to_builtins(report)], queue=CONTROL_QUEUE)

    def insist(self, kind: type[UnitReport], **facts: Any) -> None:  # noqa: ANN401
        """Send the report that ends the unit, again and again for `PERSIST_SECONDS` while the broker is down.

        After that the unit is given up: its lease has run out, and control has it done by another.
        """
        deadline = time.monotonic() + PERSIST_SECONDS
        while True:
            try:
                self.send(kind, **facts)
            except UNREACHED as error:
                if time.monotonic() > deadline or self._closing.is_set():
                    logger.warning("the end of %s could not be told: %s", self._order.unit_id, error)
                    return
                time.sleep(_AGAIN_SECONDS)
            else:
                return

    def progress(self, done: int, total: int, unit: str) -> None:
        """Counts for the next heartbeat."""
        self._counts = (done, total, unit)

    def checkpoint(self) -> None:
        """Raise `Stopped` when the audit is canceled, the fence is not live, or the worker is closing."""
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
            keys = [live_fence_key(self._order.unit_id), cancel_key(self._order.audit_id)]
            try:
                fence, canceled = cast("list[str | None]", self._redis.mget(keys))
            except UNREACHED as error:
                logger.warning("%s goes on without the broker: %s", self._order.unit_id, error)
            else:
                if canceled is not None:
                    self._stopped = "the audit is being canceled"
                elif fence is not None and fence != str(self._order.fence):
                    # A missing key says nothing: the broker lost it. The record decides in the end.
                    self._stopped = f"the live fence is {fence}, not {self._order.fence}"
            self._looked = time.monotonic()

    def _beat(self) -> None:
        """Tell counts soon after they change, and that the unit is alive when they do not."""
        told, beaten = self._counts, time.monotonic()
        while not self._ended.wait(min(TELL_SECONDS, self._order.heartbeat_seconds)):
            self._look()
            due = time.monotonic() - beaten >= self._order.heartbeat_seconds
            counts = self._counts
            if not due and counts == told:
                continue
            done, total, unit = counts
            try:
                self.send(UnitHeartbeat, done=done, total=total, unit=unit)
            except UNREACHED as error:
                logger.warning("a heartbeat of %s was not sent: %s", self._order.unit_id, error)
            else:
                told, beaten = counts, time.monotonic()
