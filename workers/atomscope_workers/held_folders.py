"""Folders in which a process works. One that a killed process left is removed when the next worker starts.

Whoever works in one holds a lock on it, which ends with the process: told is thus what is left even where
workers of several containers share a disk.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import shutil
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from atomscope_workers.worker_cache import inputs_folder

logger = logging.getLogger(__name__)

_PREFIX = ".atomscope-held-"
_UNLOCKED = ".atomscope-new-"
"""Before it is locked: a folder that has the other name has its lock."""
_LOCK = ".lock"
_FILES = "files"


@contextmanager
def held_folder(root: Path | None = None) -> Generator[Path]:
    """An empty folder in `root`, by default that of temporary files, removed at the end."""
    made = Path(tempfile.mkdtemp(prefix=_UNLOCKED, dir=root))
    with (made / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = made.rename(made.with_name(made.name.replace(_UNLOCKED, _PREFIX, 1)))
        try:
            (folder / _FILES).mkdir()
            yield folder / _FILES
        finally:
            # While it is still held: a worker that starts meanwhile removes the same files otherwise.
            try:
                _remove(folder)
            except OSError as error:
                logger.warning("%s is left: %s", folder, error)


def process_folder() -> Path:
    """The folder of this process, held until it ends; another where a cleaner of temporary files took it."""
    if not _process_folder().is_dir():
        _process_folder.cache_clear()
    return _process_folder()


@cache
def _process_folder() -> Path:
    held = ExitStack()
    atexit.register(held.close)
    return held.enter_context(held_folder())


def remove_leftovers() -> None:
    """Remove the folders that nobody holds, of temporary files and of fetched inputs."""
    remove_left(Path(tempfile.gettempdir()))
    remove_left(inputs_folder())


def remove_left(root: Path) -> None:
    """Remove the folders in `root` that nobody holds."""
    for folder in root.glob(f"{_PREFIX}*"):
        _remove_unheld(folder)


def _remove(folder: Path) -> None:
    """The lock last: what is left of a removal that is killed is still known for a held folder."""
    with suppress(FileNotFoundError):
        shutil.rmtree(folder / _FILES)
    shutil.rmtree(folder)


def _remove_unheld(folder: Path) -> None:
    try:
        with (folder / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)
    except BlockingIOError:
        return
    except OSError as error:  # another's, or another worker was faster
        logger.info("%s is left: %s", folder, error)
    else:
        logger.info("%s, which a killed worker left, is removed", folder)
