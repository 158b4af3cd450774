"""The work folder of a local audit: whose it is, and that one process at a time writes to it."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from atomscope.errors import InvalidInput

FILES = "files"
"""Folder of the outputs of every unit, at their bundle paths."""
UNITS = "units"
"""Folder of the markers of finished units."""

_STAMP = "audit"
"""File that holds the stamp of the work."""
_LOCK = "lock"


def work_folder(out: Path) -> Path:
    """Where the work of the bundle `out` lies until it is done."""
    return out.with_name(f"{out.name}.partial")


def is_work_of(work: Path, stamp: str) -> bool:
    """Whether the folder holds the work that `stamp` names: an audit, and the software that ran it."""
    file = work / _STAMP
    return file.is_file() and file.read_text(encoding="utf-8") == stamp


@contextmanager
def held(work: Path) -> Generator[None]:
    """Make the folder if need be and hold it: within, no other process does. A killed process lets go of it.

    Raises `InvalidInput` when another process holds it, and when it is there and not a work folder.
    """
    if work.exists() and not is_work(work):
        raise InvalidInput("bad_path", f"{work} exists and is no work folder of an audit")
    work.mkdir(parents=True, exist_ok=True)
    with (work / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidInput(
                "in_use", f"another process is at work in {work}: let it finish, or give another --out"
            ) from error
        yield


def claim(work: Path, stamp: str) -> None:
    """Keep what an interrupted run under this stamp left in the folder, or remove what another one left."""
    if is_work_of(work, stamp):
        for scratch in work.glob("unit-*"):  # of a run that was killed in it
            shutil.rmtree(scratch)
        return
    # Markers first: one that is left must never vouch for files that are gone.
    for folder in sorted(work.iterdir(), key=lambda path: (path.name != UNITS, path.name)):
        if folder.is_dir():
            shutil.rmtree(folder)
    (work / _STAMP).write_text(stamp, encoding="utf-8")


def is_work(work: Path) -> bool:
    """Whether it carries a stamp, or was only just made when its maker was stopped."""
    if not work.is_dir():
        return False
    return (work / _STAMP).is_file() or {path.name for path in work.iterdir()} <= {_LOCK}
