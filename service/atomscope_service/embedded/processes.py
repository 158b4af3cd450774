"""Child processes that are restarted when they die and die when their parent does."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from atomscope_service.embedded.data_dir import Child

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
_STEADY = 60.0
"""Seconds after which a child counts as having come up, and its delay starts anew."""
_PR_SET_PDEATHSIG = 1


@dataclass
class Process:
    """One child: how it is started, and what has become of it."""

    role: str
    command: Sequence[str | Path]
    environment: Mapping[str, str]
    log: Path
    pass_fds: tuple[int, ...] = ()
    grace: float = 15.0
    """Seconds between SIGTERM and SIGKILL when it is stopped."""
    restarts: int = 0
    _popen: subprocess.Popen[bytes] | None = None
    _started: float = 0.0
    _delay: float = _FIRST_DELAY
    _not_before: float = field(default=0.0)

    @property
    def pid(self) -> int | None:
        return self._popen.pid if self._popen is not None and self._popen.returncode is None else None

    def start(self) -> None:
        """Start it, its output appended to its log."""
        with self.log.open("ab") as sink:
            self._popen = subprocess.Popen(
                [str(part) for part in self.command],
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                pass_fds=self.pass_fds,
                # A session of its own: Ctrl-C reaches the parent alone, which stops the children in order.
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509  (this program has one thread)
            )
        self._started = time.monotonic()

    def look(self) -> bool:
        """Restart it if it has died and its delay is over; whether its pid changed."""
        if self._popen is None or self._popen.poll() is None:
            return False
        now = time.monotonic()
        if not self._not_before:
            steady = now - self._started > _STEADY
            self._delay = _FIRST_DELAY if steady else self._delay
            self._not_before = now + self._delay
            self._delay = min(2 * self._delay, _LONGEST_DELAY)
            return True
        if now < self._not_before:
            return False
        self._not_before = 0.0
        self.restarts += 1
        self.start()
        return True

    def terminate(self) -> None:
        """Ask it to end."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)

    def join(self) -> None:
        """Wait for its end; after its grace it is killed."""
        if self._popen is None:
            return
        try:
            self._popen.wait(self.grace)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def record(self) -> Child:
        return Child(role=self.role, pid=self.pid, restarts=self.restarts)


def _die_with(parent: int) -> Callable[[], None] | None:
    """A function for the child to run: have the kernel kill it when its parent dies. Linux only.

    Killed, not asked: with the parent gone nobody would wait for a child that has not ended, and the
    record stands a crash of any of them.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return ask
