"""The server's secret: one file, from which a key for every purpose is derived."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Literal

from atomscope_service.settings import SettingsError

MIN_BYTES = 32

Purpose = Literal["api-keys", "links", "cursors"]


class Secret:
    """Holds the secret without showing it: its `repr` is fixed."""

    def __init__(self, material: bytes) -> None:
        self._material = material

    def __repr__(self) -> str:
        return "Secret(...)"

    def derive(self, purpose: Purpose) -> bytes:
        """32 bytes that only serve this purpose."""
        return hmac.digest(self._material, f"atomscope/{purpose}".encode(), hashlib.sha256)


def load_secret(path: Path) -> Secret:
    """Read the secret; raises `SettingsError` when the file is missing or too short."""
    try:
        material = path.read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"ATOMSCOPE_SECRET_FILE cannot be read: {error.strerror}: {path}") from error
    if len(material) < MIN_BYTES:
        raise SettingsError(f"ATOMSCOPE_SECRET_FILE holds {len(material)} bytes, not {MIN_BYTES}: {path}")
    return Secret(material)


def write_private_file(path: Path, content: bytes) -> None:
    """Write a new file that only its owner can read; raises `FileExistsError`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def ensure_secret(path: Path) -> Secret:
    """Read the secret, or make one of 32 random bytes in a new file of mode 0600."""
    if not path.exists():
        write_private_file(path, base64.urlsafe_b64encode(secrets.token_bytes(32)) + b"\n")
    return load_secret(path)
