"""`atomscope worker`: one pipeline worker, one unit at a time."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from atomscope.errors import AtomscopeError
from atomscope.types.work import PIPELINE_QUEUE, Stage
from atomscope_workers.labels.settings import LabelSettingsError, label_settings

if TYPE_CHECKING:
    from atomscope_workers.stages.context import StageFunction

_FORBIDDEN = ("ATOMSCOPE_DATABASE_URL", "ATOMSCOPE_SECRET_FILE")
"""A worker loads what nobody vouches for: it must not hold these."""


class WorkerSettingsError(AtomscopeError):
    """The environment of a pipeline worker lacks a setting, or holds one that it must not."""


def run(stages: Mapping[Stage, StageFunction] | None = None) -> int:
    """Consume orders until SIGTERM; the exit status. Raises `WorkerSettingsError`.

    On SIGTERM the running unit stops at its next checkpoint and is handed back, so that another worker
    takes it at once; it does not count as an attempt. `stages` stands in for the real ones.
    """
    environ = os.environ
    held = [name for name in _FORBIDDEN if environ.get(name)]
    if held:
        raise WorkerSettingsError(f"a pipeline worker must not be given {', '.join(held)}")
    missing = [name for name in ("ATOMSCOPE_BROKER_URL", "ATOMSCOPE_STORE") if not environ.get(name)]
    if missing:
        raise WorkerSettingsError(f"a pipeline worker needs {', '.join(missing)}")
    try:
        label_settings(environ)
    except LabelSettingsError as error:
        raise WorkerSettingsError(str(error)) from error
    threads = _threads()
    told_stall = _number("ATOMSCOPE_STALL_SECONDS")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is first imported
        os.environ[name] = str(threads)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")

    import torch  # noqa: PLC0415

    from atomscope_workers.held_folders import remove_leftovers  # noqa: PLC0415
    from atomscope_workers.pulse import STALL_SECONDS  # noqa: PLC0415
    from atomscope_workers.stages.registry import STAGE_FUNCTIONS  # noqa: PLC0415
    from atomscope_workers.tasks import add_tasks, make_app  # noqa: PLC0415

    torch.set_num_threads(threads)
    remove_leftovers()
    app = make_app(environ["ATOMSCOPE_BROKER_URL"])
    add_tasks(
        app,
        environ["ATOMSCOPE_BROKER_URL"],
        environ["ATOMSCOPE_STORE"],
        stages or STAGE_FUNCTIONS,
        told_stall or STALL_SECONDS,
    )
    app.worker_main(
        [
            "--quiet",
            "worker",
            "--pool=solo",
            "--loglevel=INFO",
            f"--queues={PIPELINE_QUEUE}",
            "--without-mingle",
            "--without-gossip",
            "--without-heartbeat",
        ]
    )
    return 0


def _threads() -> int:
    """Threads of this worker: told, or the cores it may use shared among the workers of the machine."""
    told = _number("ATOMSCOPE_THREADS")
    return told or max(1, available_cores() // (_number("ATOMSCOPE_CONCURRENCY") or 1))


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    if text and not (text.isascii() and text.isdigit() and int(text)):
        raise WorkerSettingsError(f"{name} is {text!r}, not a number above 0")
    return int(text) if text else None


def available_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may use: what it is bound to, and no more than its container is given.

    `quota` holds `max PERIOD` or `QUOTA PERIOD` in microseconds (cgroup v2); it is not there elsewhere.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        limit, period = quota.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if limit == "max" else max(1, min(cores, int(limit) // int(period)))
