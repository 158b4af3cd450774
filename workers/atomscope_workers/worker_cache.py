"""Where a worker keeps what it would otherwise fetch or find out again."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "ATOMSCOPE_CACHE"


def cache_folder() -> Path:
    """`ATOMSCOPE_CACHE`, or `~/.cache/atomscope`; it may not be there yet."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "atomscope")


def inputs_folder() -> Path:
    """Where fetched inputs are kept, by their digests; it may not be there yet."""
    return cache_folder() / "inputs"
