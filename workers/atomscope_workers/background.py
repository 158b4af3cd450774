"""Work of a unit in threads beside it, its outputs written or sent: few at once, and no error is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from threadpoolctl import threadpool_limits


class BackgroundCalls:
    """Calls functions in threads of its own. The first error is raised by whatever is called next.

    What PyTorch computes in such a thread, it computes in that thread alone.
    """

    def __init__(self, name: str, *, at_once: int, waiting: int) -> None:
        """So many run `at_once`, so many more may wait; whoever adds another one waits."""
        self._pool = ThreadPoolExecutor(at_once, name, _compute_alone)
        self._room = threading.BoundedSemaphore(at_once + waiting)
        self._added: list[Future[None]] = []
        self._failed = threading.Event()

    def add(self, call: Callable[[], None]) -> None:
        """Have `call` called in a thread; waits for room. Raises what an earlier one raised."""
        self._room.acquire()
        if self._failed.is_set():
            self._room.release()
            self.finish()
        self._added.append(self._pool.submit(self._run, call))

    def finish(self) -> None:
        """Wait until every call has returned; raises what the first one that failed raised."""
        added, self._added = self._added, []
        errors = [error for future in added if (error := future.exception()) is not None]
        if errors:
            raise errors[0]

    def close(self) -> None:
        """Begin no call more, and wait for those that run: their files may be removed afterwards."""
        self._failed.set()
        self._pool.shutdown()

    def _run(self, call: Callable[[], None]) -> None:
        try:
            if not self._failed.is_set():
                call()
        except BaseException:
            self._failed.set()
            raise
        finally:
            self._room.release()


def _compute_alone() -> None:
    """Have the calling thread open no team of OpenMP threads.

    A second team has OpenMP send every thread that waits at a barrier to sleep at once, those of the unit
    too: its passes then take a sixth longer for a thread that does next to nothing.
    """
    # PyTorch sets the number of a thread when the thread first asks for it, and not again.
    torch.get_num_threads()
    threadpool_limits(1, user_api="openmp")
