"""Folders in which units work. One that a killed worker left behind is removed by the next that starts.

Whoever works in one holds a lock on it, which ends with the process: told is thus what is left even where
workers of several containers share a disk.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

_PREFIX = "atomscope-unit-"
_LOCK = ".lock"
_YOUNG_SECONDS = 60.0
"""Age below which a folder may not have its lock yet."""


@contextmanager
def unit_scratch() -> Generator[Path]:
    """A folder for one unit, held until it is removed at the end."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name, (Path(name) / _LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(name)


def remove_leftovers() -> None:
    """Remove the folders that nobody holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if time.time() - folder.stat().st_mtime < _YOUNG_SECONDS:
                continue
            with (folder / _LOCK).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        except BlockingIOError:
            continue
        except OSError as error:  # another's, or another worker was faster
            logger.info("%s is left: %s", folder, error)
        else:
            logger.info("%s, which a killed worker left, is removed", folder)
