"""How the API tells the control worker that rows want its attention."""

from __future__ import annotations

import redis

from atomscope.types.work import CONTROL_QUEUE, redis_url
from atomscope_service.control.broker import SOCKET_SECONDS, reached
from atomscope_service.control.celery import (
    AUDIT_CREATED_TASK,
    CANCEL_TASK,
    DELETIONS_TASK,
    HUB_IMPORT_TASK,
    JOB_ADDED_TASK,
    make_app,
)


class ControlQueue:
    """The `WorkQueue` of `atomscope_service.api.queue`, over the broker.

    Every method raises `BrokerUnavailable` within `SOCKET_SECONDS` or so when the broker is down.
    """

    def __init__(self, broker_url: str, lease_seconds: float) -> None:
        self._app = make_app(broker_url, lease_seconds, connect_seconds=SOCKET_SECONDS)
        self._redis: redis.Redis = redis.Redis.from_url(
            redis_url(broker_url), socket_timeout=SOCKET_SECONDS, socket_connect_timeout=SOCKET_SECONDS
        )

    def audit_created(self, project_id: str, audit_id: str) -> None:
        self._send(AUDIT_CREATED_TASK, project_id, audit_id)

    def cancel_requested(self, project_id: str, audit_id: str) -> None:
        self._send(CANCEL_TASK, project_id, audit_id)

    def job_added(self, project_id: str, job_id: str) -> None:
        self._send(JOB_ADDED_TASK, project_id, job_id)

    def deletions_added(self) -> None:
        self._send(DELETIONS_TASK)

    def hub_import_requested(self, project_id: str, model_id: str) -> None:
        self._send(HUB_IMPORT_TASK, project_id, model_id)

    def ping(self) -> None:
        with reached():
            self._redis.ping()

    def close(self) -> None:
        self._redis.close()
        self._app.close()

    def _send(self, task: str, *arguments: str) -> None:
        with reached():
            self._app.send_task(task, args=list(arguments), queue=CONTROL_QUEUE)
