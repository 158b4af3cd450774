"""What `entry.json` says of a stored shard: the size and digest of its files."""

from __future__ import annotations

from pathlib import Path

import msgspec

from atomscope.input_files import file_digest
from atomscope.types.bundle import StoredFile


class Entry(msgspec.Struct, kw_only=True):
    """`entry.json`, written last: the files of a stored shard, by name."""

    files: dict[str, StoredFile]


def stored_file(path: Path) -> StoredFile:
    """Size and SHA-256 of a file."""
    return StoredFile(size=path.stat().st_size, sha256=file_digest(path))
