"""`atomscope up`: what it makes, what it says, and that nothing of it stays behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from atomscope.cli import main
from tests.fixtures.stack import environment

COMMAND = [sys.executable, "-m", "atomscope.cli"]
START_SECONDS = 90.0
STOP_SECONDS = 30.0


class Up:
    """One `atomscope up`, its output in a file."""

    def __init__(self, folder: Path, *options: str, **settings: str) -> None:
        self.data_dir = folder / "data"
        self.output = folder / "up.out"
        with self.output.open("wb") as sink:
            self.process = subprocess.Popen(
                [*COMMAND, "up", "--data-dir", self.data_dir, "--port", "0", *options],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=environment(settings),
            )
        self.everyone: set[int] = set()

    def wait(self) -> Up:
        self.until((self.data_dir / "stack.json").exists, START_SECONDS)
        self.state()
        return self

    def until(self, holds: object, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not holds():  # type: ignore[operator]
            if self.process.poll() is not None or time.monotonic() > deadline:
                logs = "\n".join(
                    log.read_text(errors="replace")[-2000:] for log in self.data_dir.glob("logs/*")
                )
                pytest.fail(f"it did not come to pass: {self.output.read_text(errors='replace')}\n{logs}")
            time.sleep(0.05)

    def state(self) -> dict[str, object]:
        state = json.loads((self.data_dir / "stack.json").read_text(encoding="utf-8"))
        self.everyone |= {child["pid"] for child in state["children"] if child["pid"] is not None}
        return state

    def pid(self, role: str) -> int | None:
        children = self.state()["children"]
        assert isinstance(children, list)
        (pid,) = [child["pid"] for child in children if child["role"] == role]
        return pid

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.state()['url']}{path}", timeout=20)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()


def _alive(pids: set[int]) -> set[int]:
    """Those of the processes that still run; one that only waits to be buried does not."""
    running: set[int] = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            running.add(pid)
    return running


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A stack without pipeline workers, for the tests that leave it as it is."""
    made = Up(tmp_path_factory.mktemp("up"), "--workers", "0").wait()
    yield made
    made.end()


def test_it_serves_and_says_where(up: Up) -> None:
    answer = up.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["checks"] == {"database": "ok", "broker": "ok", "store": "ok"}
    up.until(up.output.read_text, 10)
    (line,) = up.output.read_text().splitlines()
    assert str(up.state()["url"]) in line
    assert str(up.state()["key_file"]) in line


def test_the_folder_is_private_and_the_key_stands_in_one_file_only(up: Up) -> None:
    key_file = Path(str(up.state()["key_file"]))
    key = key_file.read_bytes().strip()
    assert stat.S_IMODE(up.data_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE((up.data_dir / "secret").stat().st_mode) == 0o600
    holding = [
        path
        for path in [up.output, *up.data_dir.rglob("*")]
        if path.is_file() and not path.is_socket() and key in path.read_bytes()
    ]
    assert holding == [key_file]
    answer = httpx.get(f"{up.state()['url']}/v1/audits", headers={"Authorization": f"Bearer {key.decode()}"})
    assert answer.status_code == 200


def test_the_broker_listens_on_a_private_socket_and_no_port(up: Up) -> None:
    sockets = [path for path in up.data_dir.rglob("*.sock") if path.is_socket()]
    if sockets:  # else the path was too long, and it is in a temporary folder
        assert stat.S_IMODE(sockets[0].stat().st_mode) == 0o700
    pid = up.pid("valkey")
    own = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    for table in ("tcp", "tcp6"):
        lines = Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        assert not {f"socket:[{line.split()[9]}]" for line in lines} & own


def test_a_second_stack_on_the_folder_is_refused_with_the_address_of_the_first(
    up: Up, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", "--data-dir", str(up.data_dir), "--port", "0", "--workers", "0"]) == 1
    assert str(up.state()["url"]) in capsys.readouterr().err
    assert up.get("/livez").status_code == 200


def test_an_operator_makes_a_key_without_having_one(
    up: Up, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "key"
    named = ["--create-project", "--project", "second", "--name", "ops"]
    command = ["keys", "bootstrap", "--data-dir", str(up.data_dir), "--json", *named, "--out", str(out)]
    assert main(command) == 0
    told = capsys.readouterr()
    key = out.read_text(encoding="ascii").strip()
    assert key not in told.out + told.err
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    answer = httpx.get(f"{up.state()['url']}/v1/keys", headers={"Authorization": f"Bearer {key}"})
    assert [row["name"] for row in answer.json()["data"]] == ["ops"]


def test_a_child_that_dies_is_started_again(up: Up) -> None:
    before = {role: up.pid(role) for role in ("api", "valkey")}
    for pid in before.values():
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    up.until(lambda: all(up.pid(role) not in (None, pid) for role, pid in before.items()), 30)
    url = str(up.state()["url"])

    def ready() -> bool:
        try:
            return httpx.get(f"{url}/readyz", timeout=20).status_code == 200
        except httpx.TransportError:
            return False

    up.until(ready, 30)


def test_a_stop_ends_every_process_and_a_new_start_keeps_key_and_data(tmp_path: Path) -> None:
    first = Up(tmp_path, "--workers", "1", ATOMSCOPE_LEASE_SECONDS="4").wait()
    key = (first.data_dir / "first-key").read_bytes()
    worker = first.pid("worker")
    told = Path(f"/proc/{worker}/environ").read_bytes()
    assert b"ATOMSCOPE_BROKER_URL=" in told
    for secret in (b"ATOMSCOPE_DATABASE_URL", b"ATOMSCOPE_SECRET_FILE", b"ATOMSCOPE_API_KEY", b"sqlite:"):
        assert secret not in told
    first.end()
    assert first.process.returncode == 0
    assert len(first.everyone) == 4
    assert _alive(first.everyone) == set()
    assert not (first.data_dir / "stack.json").exists()

    second = Up(tmp_path, "--workers", "0", "--json").wait()
    assert (second.data_dir / "first-key").read_bytes() == key
    second.until(second.output.read_text, 10)
    assert json.loads(second.output.read_text())["url"] == second.state()["url"]
    second.process.kill()
    second.process.wait()
    deadline = time.monotonic() + 10
    while _alive(second.everyone) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _alive(second.everyone) == set(), "killed, it left processes behind"


def test_a_port_that_is_taken_is_told_by_number(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*COMMAND, "up", "--data-dir", tmp_path / "data", "--port", str(port), "--workers", "0"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=environment({}),
        )
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in done.stderr
