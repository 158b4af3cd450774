"""What a running unit sends and hears: reports to control, and whether it should go on."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

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
        self._looked = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the heartbeats; none is sent after this returns."""
        self._ended.set()
        self._thread.join()

    def send(self, kind: type[UnitReport], **facts: Any) -> None:  # noqa: ANN401
        """Send a report; raises what the broker raises when it is down."""
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

    def progress(self, done: int, total: int, unit: str) -> None:
        """Counts for the next heartbeat."""
        self._counts = (done, total, unit)

    def checkpoint(self) -> None:
        """Raise `Stopped` when the audit is canceled, the fence is not live, or the worker is closing."""
        if self._closing.is_set():
            raise Stopped("the worker is shutting down")
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        fence = self._redis.get(live_fence_key(self._order.unit_id))
        if fence != str(self._order.fence):
            raise Stopped(f"the live fence is {fence}, not {self._order.fence}")
        if self._redis.exists(cancel_key(self._order.audit_id)):
            raise Stopped("the audit is being canceled")

    def _beat(self) -> None:
        while not self._ended.wait(self._order.heartbeat_seconds):
            done, total, unit = self._counts
            try:
                self.send(UnitHeartbeat, done=done, total=total, unit=unit)
            except (redis.RedisError, kombu.exceptions.OperationalError, OSError) as error:
                logger.warning("a heartbeat of %s was not sent: %s", self._order.unit_id, error)
