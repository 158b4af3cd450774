"""Paths, environments and processes of the embedded stack, each alone."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from atomscope_service.embedded import up
from atomscope_service.embedded.data_dir import SOCKET_PATH_LIMIT, DataDir, StackError
from atomscope_service.embedded.environment import service_environment, worker_environment
from atomscope_service.embedded.gpus import visible_gpus
from atomscope_service.embedded.processes import Process


def test_a_long_folder_keeps_its_socket_in_a_private_temporary_one(tmp_path: Path) -> None:
    short, long = DataDir(Path("/d")), DataDir(tmp_path / ("x" * 120))
    assert short.socket == Path("/d/run/valkey.sock")
    assert len(str(long.socket)) <= SOCKET_PATH_LIMIT
    assert long.socket != DataDir(tmp_path / ("y" * 120)).socket
    long.create()
    assert long.socket.parent.stat().st_mode & 0o777 == 0o700
    long.socket.parent.rmdir()


def test_a_folder_is_held_by_one_stack(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path / "d")
    data_dir.create()
    held = data_dir.lock()
    with pytest.raises(StackError, match="running"):
        data_dir.lock()
    held.close()
    data_dir.lock().close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StackError, match="file"):
        DataDir(tmp_path / "file" / "d").create()


def test_a_pipeline_worker_is_told_what_it_needs_and_no_secret(tmp_path: Path) -> None:
    outer = {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "0",
        "AWS_ACCESS_KEY_ID": "store",
        "ATOMSCOPE_S3_REGION": "eu",
        "ATOMSCOPE_LABEL_URL": "http://127.0.0.1:8000/v1",
        "ATOMSCOPE_LABEL_KEY_FILE": "/etc/label-key",
        "ATOMSCOPE_DATABASE_URL": "postgresql://u:secret@h/d",
        "ATOMSCOPE_SECRET_FILE": "/secret",
        "ATOMSCOPE_API_KEY": "ask_x",
        "PGPASSWORD": "secret",
        "HF_TOKEN": "secret",
        "GITHUB_TOKEN": "secret",
        "OMP_NUM_THREADS": "64",
    }
    data_dir = DataDir(tmp_path)
    told = worker_environment(data_dir, outer, 2)
    assert "secret" not in " ".join(told.values())
    assert told == {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "0",
        "AWS_ACCESS_KEY_ID": "store",
        "ATOMSCOPE_S3_REGION": "eu",
        "ATOMSCOPE_LABEL_URL": "http://127.0.0.1:8000/v1",
        "ATOMSCOPE_LABEL_KEY_FILE": "/etc/label-key",
        "ATOMSCOPE_STORE": data_dir.store_uri,
        "ATOMSCOPE_BROKER_URL": data_dir.broker_url,
        "ATOMSCOPE_THREADS": "2",
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
    }
    service = service_environment(data_dir, outer)
    assert service["ATOMSCOPE_DATABASE_URL"] == outer["ATOMSCOPE_DATABASE_URL"], (
        "the operator's setting goes first"
    )
    assert service["ATOMSCOPE_BROKER_URL"] == data_dir.broker_url


def test_workers_take_the_gpus_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up.os, "environ", {"CUDA_VISIBLE_DEVICES": "4,GPU-b"})
    data_dir = DataDir(tmp_path)
    with socket.socket() as listener:
        processes = up._processes(data_dir, {}, listener, 3, visible_gpus(os.environ, print))
        alone = up._processes(data_dir, {}, listener, 1, [])
    told = [item.environment.get("CUDA_VISIBLE_DEVICES") for item in processes if item.role == "worker"]
    assert told == ["4", "GPU-b", "4"]
    assert alone[-1].environment["CUDA_VISIBLE_DEVICES"] == "4,GPU-b", "as it was, where none is known"


@pytest.mark.parametrize(
    ("listed", "found"),
    [("0,1", ["0", "1"]), (" GPU-a , 3", ["GPU-a", "3"]), ("", []), ("-1", []), ("2,-1,3", ["2"])],
)
def test_the_gpus_that_the_environment_lists_go_before_all_others(listed: str, found: list[str]) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": listed, "PATH": "/bin"}, pytest.fail) == found


@pytest.mark.parametrize(
    ("script", "found", "notes"),
    [
        ("echo GPU-1f; echo GPU-2e", ["GPU-1f", "GPU-2e"], 0),
        ("echo 'No devices were found'", [], 0),
        ("echo GPU-1f; exit 9", [], 1),
    ],
)
def test_the_driver_tells_of_gpus_or_that_it_cannot(
    tmp_path: Path, script: str, found: list[str], notes: int
) -> None:
    """A script stands for `nvidia-smi`, which comes with a GPU's driver."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    told: list[str] = []
    assert visible_gpus({"PATH": str(tmp_path)}, told.append) == found
    assert len(told) == notes
    assert all("exit status 9" in note and "CUDA_VISIBLE_DEVICES" in note for note in told)
    assert visible_gpus({"PATH": str(tmp_path / "none")}, pytest.fail) == []


def test_a_child_that_keeps_dying_is_restarted_ever_more_rarely(tmp_path: Path) -> None:
    process = Process("worker", [sys.executable, "-c", "raise SystemExit(3)"], {}, tmp_path / "log")
    process.start()
    deadline = time.monotonic() + 3.0
    while time.monotonic() < deadline:
        process.look()
        time.sleep(0.02)
    process.join()
    assert 1 <= process.restarts <= 3, "0.5, 1 and 2 seconds apart"


def test_a_child_that_does_not_end_is_killed(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    process = Process("worker", [sys.executable, "-c", deaf], {}, tmp_path / "log", grace=0.3)
    process.start()
    while not (tmp_path / "log").read_text():
        time.sleep(0.02)
    process.terminate()
    process.join()
    assert process.pid is None
