"""Where results may be written: not within a bundle, whose files are all listed and never change."""

from __future__ import annotations

import os
from pathlib import Path

BUNDLE_FILES = ("manifest.json", "report.json", "atoms/atoms.json")
"""A folder that holds these is a bundle."""


def enclosing_bundle(folder: Path) -> Path | None:
    """The bundle that a folder lies in, links followed; None where it lies in none."""
    for above in Path(os.path.realpath(folder.expanduser())).parents:
        if all((above / name).is_file() for name in BUNDLE_FILES):
            return above
    return None
