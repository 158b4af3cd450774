"""Telling an id from a path where a method takes either."""

from __future__ import annotations

import os
import re
from pathlib import Path

from atomscope.errors import InvalidInput

_ID = re.compile(r"(?:mdl|ada|ds|aud)_[0-9a-f]{32}")


def is_id(reference: str | Path, prefix: str) -> bool:
    """Whether `reference` is an id of this kind; a `Path` never is, a `str` of an id's form always is.

    Raises `InvalidInput` when it is an id of another kind, or neither an id nor an existing path.
    """
    if isinstance(reference, Path):
        if not reference.exists():
            raise InvalidInput("bad_path", f"no such file or folder: {reference}")
        return False
    if _ID.fullmatch(reference):
        if not reference.startswith(f"{prefix}_"):
            raise InvalidInput("bad_id", f"{reference} is not an id of this kind: those begin with {prefix}_")
        return True
    if os.path.exists(reference):  # noqa: PTH110  (a str that may hold a NUL is not a Path)
        return False
    raise InvalidInput("bad_path", f"{reference!r} is neither an id ({prefix}_...) nor an existing path")
