"""Outputs of a unit on their way to the store while the unit goes on: few at once, and no error is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

AT_ONCE = 2
"""Files that are sent at once; each large one goes in parts, four at a time."""
WAITING = 8
"""Files that may wait to be sent; whoever adds another one waits."""


class BackgroundUploads:
    """Sends files in threads of its own. The first error is raised by whatever is called next."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="upload")
        self._room = threading.BoundedSemaphore(AT_ONCE + WAITING)
        self._sent: list[Future[None]] = []
        self._failed = threading.Event()

    def add(self, send: Callable[[], None]) -> None:
        """Have `send` called in a thread; waits for room. Raises what an earlier one raised."""
        self._room.acquire()
        if self._failed.is_set():
            self._room.release()
            self.finish()
        future = self._pool.submit(self._run, send)
        self._sent.append(future)

    def finish(self) -> None:
        """Wait until every file is in the store; raises what the first one that failed raised."""
        sent, self._sent = self._sent, []
        errors = [error for future in sent if (error := future.exception()) is not None]
        if errors:
            raise errors[0]

    def close(self) -> None:
        """Send nothing more, and wait for what is being sent: its files may be removed afterwards."""
        self._failed.set()
        self._pool.shutdown()

    def _run(self, send: Callable[[], None]) -> None:
        try:
            if not self._failed.is_set():
                send()
        except BaseException:
            self._failed.set()
            raise
        finally:
            self._room.release()
