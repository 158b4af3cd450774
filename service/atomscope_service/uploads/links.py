"""Signed links of the local store: they name what they allow, for how long, and need no key.

On S3 the store's own presigned URLs take their place.
"""

from __future__ import annotations

import time
from urllib.parse import urlencode

import msgspec

from atomscope_service.api.problems import ProblemError
from atomscope_service.auth.signing import is_signed, sign


class PartLink(msgspec.Struct, frozen=True, kw_only=True):
    """The right to put one part of one file of an upload: exactly `size` bytes."""

    project_id: str
    upload_id: str
    file: int
    """Number of the file, from 0."""
    part: int
    """Number of the part, from 1."""
    size: int
    expires: int
    """Unix time, seconds."""

    def url(self, base_url: str, key: bytes) -> str:
        """The link itself."""
        path = f"/v1/uploads/{self.upload_id}/files/{self.file}/parts/{self.part}"
        query = {"project": self.project_id, "size": self.size, "expires": self.expires}
        return f"{base_url}{path}?{urlencode({**query, 'signature': sign(key, *self._signed())})}"

    def check(self, key: bytes, signature: str) -> None:
        """Raise 403 `bad_signature` or `link_expired`."""
        _check(key, signature, self.expires, self._signed())

    def _signed(self) -> tuple[str, ...]:
        numbers = (self.file, self.part, self.size, self.expires)
        return ("part", self.project_id, self.upload_id, *map(str, numbers))


class FileLink(msgspec.Struct, frozen=True, kw_only=True):
    """The right to read one object."""

    key: str
    expires: int

    def url(self, base_url: str, key: bytes) -> str:
        """The link itself."""
        signature = sign(key, *self._signed())
        query = urlencode({"key": self.key, "expires": self.expires, "signature": signature})
        return f"{base_url}/v1/files?{query}"

    def check(self, key: bytes, signature: str) -> None:
        """Raise 403 `bad_signature` or `link_expired`."""
        _check(key, signature, self.expires, self._signed())

    def _signed(self) -> tuple[str, ...]:
        return ("file", self.key, str(self.expires))


def _check(key: bytes, signature: str, expires: int, parts: tuple[str, ...]) -> None:
    if not is_signed(key, signature, *parts):
        raise ProblemError(403, "bad_signature", "The signature of this link is not ours.")
    if time.time() > expires:
        raise ProblemError(403, "link_expired", "This link has expired: ask for a new one.")
