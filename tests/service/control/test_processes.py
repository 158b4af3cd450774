"""Control and pipeline workers as the processes they are, killed where it hurts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atomscope.types.work import FAN_OUT, STAGES
from atomscope_service.control.queue import ControlQueue
from atomscope_workers.pulse import STALLED
from tests.fixtures.stack import environment
from tests.service.control.site import SHARDS, Site

ROOT = Path(__file__).parents[3]
WITHIN = 60.0
"""Seconds in which a lost shard must be running again; it takes about five at these settings."""


class Processes:
    """Processes of one site, ended with the test."""

    def __init__(self, site: Site, folder: Path) -> None:
        self._site = site
        self._log = folder / "processes.log"
        self._all: list[subprocess.Popen[bytes]] = []

    def control(self) -> subprocess.Popen[bytes]:
        return self._start(["-m", "atomscope.cli", "control"], self._site.environment())

    def worker(self, seconds: float, **settings: str) -> subprocess.Popen[bytes]:
        told = settings | {
            "ATOMSCOPE_BROKER_URL": self._site.valkey.url,
            "ATOMSCOPE_STORE": self._site.settings.store,
            "ATOMSCOPE_THREADS": "1",
            "STANDIN_SECONDS": str(seconds),
        }
        return self._start(["-m", "tests.service.control.standin"], told)

    def _start(self, command: list[str], told: dict[str, str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as sink:
            process = subprocess.Popen(
                [sys.executable, *command],
                env=environment(told),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )
        self._all.append(process)
        return process

    def until(self, holds: Callable[[], bool], seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            dead = [process.args for process in self._all if process.poll() not in (None, 0, -signal.SIGKILL)]
            if dead or time.monotonic() > deadline:
                pytest.fail(f"it did not come to pass:\n{self.log()[-6000:]}")
            time.sleep(0.05)

    def status(self, process: subprocess.Popen[bytes]) -> int:
        """With what a process ends, which need be no success."""
        status = process.wait(timeout=WITHIN)
        self._all.remove(process)
        return status

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def end(self) -> None:
        for process in self._all:
            process.kill()
            process.wait()


@pytest.fixture
def processes(site: Site, tmp_path: Path) -> Iterator[Processes]:
    made = Processes(site, tmp_path)
    yield made
    made.end()


def _leased(site: Site, audit: str) -> list[str]:
    return [unit.id for unit in site.units(audit, "extract") if unit.state == "leased"]


def _submit(site: Site) -> str:
    audit = site.submit()
    queue = ControlQueue(site.valkey.url, site.settings.lease_seconds)
    queue.audit_created(site.project, audit)
    queue.close()
    return audit


def _assert_whole(site: Site, audit: str) -> None:
    """The audit succeeded, every unit counted once, its bundle made of the winners."""
    row = site.audit(audit)
    assert (row.status, row.n_documents) == ("succeeded", 10 * SHARDS)
    assert Counter(unit.state for unit in site.units(audit)) == {
        "succeeded": len(STAGES) - len(FAN_OUT) + len(FAN_OUT) * SHARDS
    }
    assert row.bundle_prefix is not None
    bundle = {item.key.removeprefix(row.bundle_prefix) for item in site.store.list(row.bundle_prefix)}
    assert {f"extract/{index:04d}.json" for index in range(SHARDS)} | {"manifest.json"} <= bundle
    events = site.events(audit)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


def test_a_worker_killed_in_mid_extraction_is_replaced_and_no_shard_counts_twice(
    site: Site, processes: Processes
) -> None:
    processes.control()
    first = processes.worker(seconds=30.0)
    audit = _submit(site)
    processes.until(lambda: len(_leased(site, audit)) == 1)
    (lost,) = _leased(site, audit)
    second = processes.worker(seconds=0.3)
    first.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    processes.until(lambda: any(unit.id == lost and unit.fence == 2 for unit in site.units(audit)), WITHIN)
    assert time.monotonic() - killed < WITHIN
    processes.until(lambda: site.audit(audit).status != "running")
    _assert_whole(site, audit)
    retried = [event.data for event in site.events(audit) if event.type == "audit.unit_retried"]
    assert [(data["stage"], data["fence"], data["code"]) for data in retried] == [
        ("extract", 2, "lease_expired")
    ]
    (unit,) = [unit for unit in site.units(audit) if unit.id == lost]
    assert unit.worker is not None
    assert unit.worker.endswith(f":{second.pid}")


def test_a_slow_worker_keeps_no_shard_from_the_others_but_the_one_it_runs(
    site: Site, processes: Processes
) -> None:
    processes.control()
    slow = processes.worker(seconds=300.0)
    audit = _submit(site)
    processes.until(lambda: len(_leased(site, audit)) == 1)
    fast = processes.worker(seconds=0.1)

    def done_by() -> Counter[str]:
        done = [unit for unit in site.units(audit, "extract") if unit.state == "succeeded"]
        return Counter(str(unit.worker).rpartition(":")[2] for unit in done)

    processes.until(lambda: done_by().total() == SHARDS - 1)
    assert done_by() == {str(fast.pid): SHARDS - 1}
    (left,) = [unit for unit in site.units(audit, "extract") if unit.state != "succeeded"]
    assert (left.state, str(left.worker).rpartition(":")[2]) == ("leased", str(slow.pid))


def test_a_shard_that_stands_still_is_taken_from_the_worker_that_holds_it(
    site: Site, processes: Processes
) -> None:
    processes.control()
    hung = processes.worker(seconds=300.0, STANDIN_STANDS="1", ATOMSCOPE_STALL_SECONDS="2")
    audit = _submit(site)
    processes.until(lambda: len(_leased(site, audit)) == 1)
    assert processes.status(hung) == STALLED
    assert "standin.py" in processes.log(), "it says where it stood"
    processes.worker(seconds=12.0, ATOMSCOPE_STALL_SECONDS="10")
    processes.until(lambda: site.audit(audit).status != "running")
    _assert_whole(site, audit)
    codes = [event.data["code"] for event in site.events(audit) if event.type == "audit.unit_retried"]
    assert codes == ["lease_expired"], "what is slow and moves is left alone"


def test_a_worker_that_is_asked_to_end_hands_its_shard_over_without_a_lost_lease(
    site: Site, processes: Processes
) -> None:
    processes.control()
    first = processes.worker(seconds=30.0)
    audit = _submit(site)
    processes.until(lambda: len(_leased(site, audit)) == 1)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=20) == 0
    processes.worker(seconds=0.1)
    processes.until(lambda: site.audit(audit).status not in ("queued", "running"))
    _assert_whole(site, audit)
    codes = [event.data["code"] for event in site.events(audit) if event.type == "audit.unit_retried"]
    assert codes == ["worker_stopped"]


def test_control_killed_in_the_middle_loses_nothing(site: Site, processes: Processes) -> None:
    control = processes.control()
    processes.worker(seconds=0.6)
    audit = _submit(site)
    processes.until(lambda: len(_leased(site, audit)) == 1)
    control.send_signal(signal.SIGKILL)
    control.wait()
    time.sleep(1.0)  # the shard ends, with nobody to be told
    assert site.audit(audit).status == "running"
    processes.control()
    processes.control()  # two share the work
    processes.until(lambda: site.audit(audit).status not in ("queued", "running"))
    _assert_whole(site, audit)
