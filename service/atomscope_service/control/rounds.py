"""The control worker's rounds: threads that do their task every so often, or when they are woken."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from atomscope.errors import AtomscopeError

logger = logging.getLogger(__name__)


class Round:
    """Calls `work` every `seconds` in a thread of its own, at once when woken, until it is stopped.

    What `work` raises ends that call, never the rounds: the record is what counts, and the next round
    finds in it whatever this one left.
    """

    def __init__(self, name: str, seconds: float, work: Callable[[], object]) -> None:
        self._name = name
        self._seconds = seconds
        self._work = work
        self._woken = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._go, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Have the next call made now."""
        self._woken.set()

    def stop(self, timeout: float) -> None:
        """Make no further call; wait for the one under way, but not longer than `timeout` seconds."""
        self._stopped.set()
        self._woken.set()
        self._thread.join(timeout)

    def _go(self) -> None:
        while True:
            self._woken.clear()
            if self._stopped.is_set():
                return
            try:
                self._work()
            except AtomscopeError as error:
                logger.warning("the %s was cut short: %s", self._name, error)
            except Exception:
                logger.exception("the %s was cut short", self._name)
            self._woken.wait(self._seconds)
