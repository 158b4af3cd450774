"""`atomscope worker`: one pipeline worker, one unit at a time."""

from __future__ import annotations

import logging
import os
import sys

from atomscope.errors import AtomscopeError
from atomscope.types.work import PIPELINE_QUEUE

_FORBIDDEN = ("ATOMSCOPE_DATABASE_URL", "ATOMSCOPE_SECRET_FILE")
"""A worker loads what nobody vouches for: it must not hold these."""


class WorkerSettingsError(AtomscopeError):
    """The environment of a pipeline worker lacks a setting, or holds one that it must not."""


def run() -> int:
    """Consume orders until SIGTERM; the exit status. Raises `WorkerSettingsError`."""
    environ = os.environ
    held = [name for name in _FORBIDDEN if environ.get(name)]
    if held:
        raise WorkerSettingsError(f"a pipeline worker must not be given {', '.join(held)}")
    missing = [name for name in ("ATOMSCOPE_BROKER_URL", "ATOMSCOPE_STORE") if not environ.get(name)]
    if missing:
        raise WorkerSettingsError(f"a pipeline worker needs {', '.join(missing)}")
    threads = _threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is first imported
        os.environ[name] = str(threads)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")

    import torch  # noqa: PLC0415

    from atomscope_workers.tasks import add_tasks, make_app  # noqa: PLC0415

    torch.set_num_threads(threads)
    app = make_app(environ["ATOMSCOPE_BROKER_URL"])
    add_tasks(app, environ["ATOMSCOPE_BROKER_URL"], environ["ATOMSCOPE_STORE"])
    app.worker_main(
        [
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
    text = os.environ.get("ATOMSCOPE_THREADS", "")
    if text and not (text.isascii() and text.isdigit() and int(text)):
        raise WorkerSettingsError(f"ATOMSCOPE_THREADS is {text!r}, not a number above 0")
    return int(text) if text else os.cpu_count() or 1
