"""Control's side of the broker: orders, fences, cancel flags, and a look into the queue."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import kombu.exceptions
import msgspec
import redis

from atomscope.errors import AtomscopeError
from atomscope.types.jobs import RUN_JOB_TASK, JobOrder
from atomscope.types.work import (
    PIPELINE_QUEUE,
    RUN_UNIT_TASK,
    UnitOrder,
    cancel_key,
    claim_key,
    live_fence_key,
    order_id,
    redis_url,
)
from atomscope_service.control.celery import ORDER_VISIBILITY_SECONDS, make_order_app

KEY_SECONDS = 2 * ORDER_VISIBILITY_SECONDS
"""How long fences and flags are kept: longer than any message that could still refer to them."""
SOCKET_SECONDS = 5.0
_PAGE = 500
_RETIRED = "0"
"""No unit has this fence, so whoever compares its own with it stops."""


class BrokerUnavailable(AtomscopeError):  # noqa: N818
    """The broker cannot be reached or refuses."""


class Broker:
    """Control's side of the broker. Every method raises `BrokerUnavailable` when it is down."""

    def __init__(self, broker_url: str) -> None:
        self._app = make_order_app(broker_url, connect_seconds=SOCKET_SECONDS)
        self._redis: redis.Redis = redis.Redis.from_url(
            redis_url(broker_url),
            decode_responses=True,
            socket_timeout=SOCKET_SECONDS,
            socket_connect_timeout=SOCKET_SECONDS,
        )

    def send_order(self, order: UnitOrder) -> None:
        """Make the order's fence the live one, then send it."""
        with reached():
            self._redis.set(live_fence_key(order.unit_id), order.fence, ex=KEY_SECONDS)
            self._app.send_task(
                RUN_UNIT_TASK,
                kwargs={"order": msgspec.to_builtins(order)},
                queue=PIPELINE_QUEUE,
                task_id=order_id(order.unit_id, order.fence),
            )

    def send_job(self, order: JobOrder) -> None:
        """The same for a job."""
        with reached():
            self._redis.set(live_fence_key(order.job_id), order.fence, ex=KEY_SECONDS)
            self._app.send_task(
                RUN_JOB_TASK,
                kwargs={"order": msgspec.to_builtins(order)},
                queue=PIPELINE_QUEUE,
                task_id=order_id(order.job_id, order.fence),
            )

    def retire(self, unit_ids: list[str]) -> None:
        """Tell whoever still runs these units to stop: they have ended."""
        if not unit_ids:
            return
        with reached():
            pipeline = self._redis.pipeline(transaction=False)
            for unit_id in unit_ids:
                pipeline.set(live_fence_key(unit_id), _RETIRED, ex=KEY_SECONDS)
            pipeline.execute()

    def flag_cancel(self, audit_id: str) -> None:
        """Tell every worker on this audit to stop at its next batch."""
        with reached():
            self._redis.set(cancel_key(audit_id), "1", ex=KEY_SECONDS)

    def claimed(self, unit_id: str, fence: int) -> bool:
        """Whether a worker has taken the unit up under this fence."""
        with reached():
            return bool(self._redis.exists(claim_key(unit_id, fence)))

    def may_tell(self, subject: str, seconds: float) -> bool:
        """True at most once in `seconds` for a subject, among all control workers."""
        with reached():
            return bool(self._redis.set(f"atomscope:told:{subject}", "1", nx=True, px=int(seconds * 1000)))

    def hold(self, subject: str, holder: str, seconds: float) -> bool:
        """Take or renew a lock of `seconds`; False while another holder has it."""
        key = f"atomscope:lock:{subject}"
        with reached():
            if self._redis.set(key, holder, nx=True, px=int(seconds * 1000)):
                return True
            if self._redis.get(key) != holder:
                return False
            self._redis.pexpire(key, int(seconds * 1000))
            return True

    def release(self, subject: str, holder: str) -> None:
        """Give a lock back."""
        key = f"atomscope:lock:{subject}"
        with reached():
            if self._redis.get(key) == holder:
                self._redis.delete(key)

    def waiting_orders(self) -> set[str]:
        """Ids (`order_id`) of the orders that lie in the `pipeline` queue untouched."""
        found: set[str] = set()
        with reached():
            # From the new end: what is sent meanwhile moves orders on, so a page may repeat one, and what
            # is taken leaves at the other end. Paging from there would skip as many as were taken.
            start = 0
            while True:
                page = cast(list[str], self._redis.lrange(PIPELINE_QUEUE, start, start + _PAGE - 1))
                found.update(_order_ids(page))
                if len(page) < _PAGE:
                    return found
                start += _PAGE

    def ping(self) -> None:
        with reached():
            self._redis.ping()

    def close(self) -> None:
        self._redis.close()
        self._app.close()


@contextmanager
def reached() -> Generator[None]:
    """Turn whatever a broker that is down makes the clients raise into `BrokerUnavailable`."""
    """Turn what redis and kombu raise into `BrokerUnavailable`."""
    try:
        yield
    except (redis.RedisError, kombu.exceptions.OperationalError, OSError) as error:
        raise BrokerUnavailable(f"the broker cannot be reached: {error}") from error


def _order_ids(messages: list[str]) -> Iterator[str]:
    for text in messages:
        try:
            message = json.loads(text)
        except ValueError:
            continue  # not one of ours: no order is hidden in it
        headers = cast(Mapping[str, Any], message).get("headers") if isinstance(message, dict) else None
        if isinstance(headers, dict) and isinstance(headers.get("id"), str):
            yield headers["id"]
