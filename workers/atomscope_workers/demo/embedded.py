"""`atomscope up` as a child process that goes away with whoever started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from atomscope.errors import AtomscopeError

START_SECONDS = 120.0
STOP_SECONDS = 60.0


class DemoError(AtomscopeError):
    """The demo cannot go on; the message says where to look."""


@dataclass(frozen=True)
class RunningStack:
    """A stack that is up."""

    url: str
    api_key: str
    data_dir: Path

    def register_model(self, name: str, folder: Path) -> str:
        """Register a base model as the operator does and return its id; raises `DemoError`."""
        arguments = ["models", "register", "--json", "--data-dir", str(self.data_dir)]
        done = subprocess.run(
            _command([*arguments, "--name", name, "--path", str(folder)]),
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise DemoError(f"`atomscope models register` failed: {done.stderr.strip()}")
        return str(json.loads(done.stdout)["id"])


@contextmanager
def running_stack(data_dir: Path) -> Generator[RunningStack]:
    """Start the stack on a free port and stop it on the way out, whatever the reason.

    Raises `DemoError` when it does not come up.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir.with_suffix(".log")
    with log.open("wb") as sink:
        # A session of its own: Ctrl-C reaches only us, and we stop the stack in its own order.
        process = subprocess.Popen(
            _command(["up", "--data-dir", str(data_dir), "--port", "0"]),
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield _wait(process, data_dir, log)
    finally:
        _stop(process)


def _wait(process: subprocess.Popen[bytes], data_dir: Path, log: Path) -> RunningStack:
    deadline = time.monotonic() + START_SECONDS
    state_file = data_dir / "stack.json"
    while not state_file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
            raise DemoError("\n".join([f"the stack did not come up; its log is {log}", *tail]))
        time.sleep(0.1)
    state = json.loads(state_file.read_text(encoding="utf-8"))
    key = Path(state["key_file"]).read_text(encoding="utf-8").strip()
    return RunningStack(url=state["url"], api_key=key, data_dir=data_dir)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "atomscope.cli", *arguments]


def _environment() -> dict[str, str]:
    """Ours without settings of another installation."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ATOMSCOPE_")}
