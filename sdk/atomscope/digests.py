"""Digests of inputs: what `InputRef.sha256` holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path


def file_digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def folder_digest(files: Mapping[str, str]) -> str:
    """SHA-256 of the sorted lines `sha256  path`, each ended by a newline.

    `files` maps a file's path within the folder to the hexadecimal SHA-256 of its content.
    """
    lines = sorted(f"{sha256}  {path}\n" for path, sha256 in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()
