"""One content under several names of a file system."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

_BLOCK = 1 << 20
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES, errno.ENOSYS})


def link_or_copy(origin: Path, target: Path) -> None:
    """Make the new file `target` another name of `origin`, or where the disk cannot, a copy."""
    try:
        os.link(origin, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        copy_synced(origin, target)


def copy_synced(source: Path, target: Path) -> None:
    """Copy a file to the new file `target`, and see it to the disk."""
    with source.open("rb") as origin, target.open("xb") as sink:
        shutil.copyfileobj(origin, sink, _BLOCK)
        sink.flush()
        os.fsync(sink.fileno())
