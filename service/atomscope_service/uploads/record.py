"""An upload as its row holds it."""

from __future__ import annotations

from datetime import datetime

import msgspec

from atomscope_service.db.models import UploadRow

MAX_PARTS = 10_000
"""Of one object: S3's limit."""
_MIB = 1024 * 1024


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an upload, and how it is cut into parts."""

    path: str
    size: int
    sha256: str
    key: str
    multipart: str | None
    """The store's own id of an object that comes in parts, where it has one."""
    part_bytes: int

    @property
    def part_count(self) -> int:
        """An empty file has one part, of no bytes."""
        return max(1, -(-self.size // self.part_bytes))

    def part_size(self, part: int) -> int:
        """Bytes of part `part` (from 1): all but the last are whole."""
        return min(self.part_bytes, self.size - (part - 1) * self.part_bytes)


class OpenUpload(msgspec.Struct, frozen=True, kw_only=True):
    """What a transfer needs to know of an upload."""

    id: str
    project_id: str
    expires_at: datetime
    files: list[StoredFile]


def part_bytes_for(size: int, wanted: int) -> int:
    """`wanted`, or the next MiB at which a file of `size` bytes has no more than `MAX_PARTS` parts."""
    needed = -(-size // MAX_PARTS)
    return wanted if needed <= wanted else -(-needed // _MIB) * _MIB


def upload_prefix(project_id: str, upload_id: str) -> str:
    """Key prefix of everything that an upload holds."""
    return f"projects/{project_id}/uploads/{upload_id}/"


def open_upload(row: UploadRow) -> OpenUpload:
    """Decode a row."""
    return OpenUpload(
        id=row.id,
        project_id=row.project_id,
        expires_at=row.expires_at,
        files=msgspec.convert(row.files, list[StoredFile]),
    )
