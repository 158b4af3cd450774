"""One content under several names."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS})


def link(source: Path, target: Path) -> None:
    """Put a file that will not change at `target`, which may be there: a hard link, or a copy elsewhere."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), temporary)  # of a symbolic link, what it leads to
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(source, temporary)
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # moving a file onto another name of itself does nothing
