"""The Celery application of the `control` queue, and how it reaches the broker.

Kombu keeps unacknowledged messages in keys that every application on a broker shares unless told
otherwise, and the shortest visibility timeout among them wins for all. The two queues need different
ones: a report whose control worker died must come back in seconds, an order must never come back
while its shard runs. So the control queue keeps its own keys.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu.entity import Queue

from atomscope.types.work import CONTROL_QUEUE

AUDIT_CREATED_TASK = "atomscope.control.audit_created"
CANCEL_TASK = "atomscope.control.cancel"
JOB_ADDED_TASK = "atomscope.control.job_added"
DELETIONS_TASK = "atomscope.control.deletions"
HUB_IMPORT_TASK = "atomscope.control.hub_import"

ORDER_VISIBILITY_SECONDS = 86_400
"""Far above the longest shard: kombu is never what brings an order back. Leases are."""


def make_app(broker_url: str, lease_seconds: float, *, connect_seconds: float | None = None) -> Celery:
    """The application that consumes and sends on the `control` queue.

    `connect_seconds` bounds how long a sender waits for a broker that does not answer.
    """
    app = Celery("atomscope.control", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_queues=[Queue(CONTROL_QUEUE)],
        task_default_queue=CONTROL_QUEUE,
        task_create_missing_queues=False,
        broker_transport_options=_transport(
            connect_seconds,
            visibility_timeout=max(5.0, lease_seconds),
            unacked_key="atomscope:unacked:control",
            unacked_index_key="atomscope:unacked-index:control",
            unacked_mutex_key="atomscope:unacked-mutex:control",
            unacked_restore_interval=max(1.0, min(10.0, lease_seconds / 2)),
            unacked_restore_throttle=1,
        ),
        **_common(),
    )
    return app


def make_order_app(broker_url: str, *, connect_seconds: float | None = None) -> Celery:
    """The application that sends orders to the `pipeline` queue."""
    app = Celery("atomscope.orders", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_create_missing_queues=True,
        broker_transport_options=_transport(connect_seconds, visibility_timeout=ORDER_VISIBILITY_SECONDS),
        **_common(),
    )
    return app


def _transport(connect_seconds: float | None, **options: Any) -> dict[str, Any]:  # noqa: ANN401
    if connect_seconds is not None:
        options |= {"socket_connect_timeout": connect_seconds, "socket_timeout": connect_seconds}
    return options


def _common() -> dict[str, Any]:
    """Settings of every application of the service: JSON only, nothing lost on a crash, no results kept."""
    return {
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_publish_retry": False,
        "worker_prefetch_multiplier": 1,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_enable_remote_control": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "enable_utc": True,
    }
