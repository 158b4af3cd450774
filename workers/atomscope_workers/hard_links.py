"""Files of one audit in the folders of another."""

from __future__ import annotations

from pathlib import Path

from atomscope.store import link_or_copy


def link(source: Path, target: Path) -> None:
    """Put a file that will not change at `target`, which may be there: a hard link, or a copy elsewhere."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    link_or_copy(source.resolve(), temporary)  # of a symbolic link, what it leads to
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # moving a file onto another name of itself does nothing
