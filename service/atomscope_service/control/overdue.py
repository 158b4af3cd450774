"""What the sweeps of units and jobs share: where an overdue order is; keeping one subject from the others."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

from atomscope.types.work import order_id
from atomscope_service.control.broker import Broker
from atomscope_service.control.steps import Delivery

logger = logging.getLogger(__name__)


class Deliveries:
    """Where orders are, by one look into the queue for a whole sweep."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._waiting: set[str] | None = None

    def of(self, subject: str, fence: int) -> Delivery:
        """Where the order of a queued unit or job is; raises `BrokerUnavailable`.

        An order that a worker takes between the two looks and has not claimed yet is seen in neither; it is
        sent once more under the same fence, and the claim lets only one of the two run.
        """
        if self._waiting is None:
            self._waiting = self._broker.waiting_orders()
        if order_id(subject, fence) in self._waiting:
            return "waiting"
        return "taken" if self._broker.claimed(subject, fence) else "lost"


@contextmanager
def apart(subject: str) -> Generator[None]:
    """Keep what is wrong with one audit or job from the others."""
    try:
        yield
    except Exception:
        logger.exception("%s could not be looked after", subject)
