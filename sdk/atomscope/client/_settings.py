"""Where the service is and which key to show it, from arguments or the environment."""

from __future__ import annotations

import os
from pathlib import Path

from atomscope.errors import AtomscopeError

DEFAULT_BASE_URL = "http://127.0.0.1:8000"


class MissingKey(AtomscopeError):  # noqa: N818
    """No API key was given, by argument or environment."""


def connection(base_url: str | None, api_key: str | None) -> tuple[str, str]:
    """Base URL and key: as given, else `ATOMSCOPE_BASE_URL`, `ATOMSCOPE_API_KEY`, `ATOMSCOPE_API_KEY_FILE`.

    Raises `MissingKey` when there is no key, or its file cannot be read.
    """
    url = base_url or os.environ.get("ATOMSCOPE_BASE_URL") or DEFAULT_BASE_URL
    key = api_key or os.environ.get("ATOMSCOPE_API_KEY")
    file = os.environ.get("ATOMSCOPE_API_KEY_FILE")
    if not key and file:
        try:
            key = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise MissingKey(f"cannot read the key in ATOMSCOPE_API_KEY_FILE: {error}") from error
    if not key:
        raise MissingKey("no API key: set ATOMSCOPE_API_KEY or ATOMSCOPE_API_KEY_FILE, or pass api_key=")
    if not key.isascii() or not key.isprintable():
        raise MissingKey("the API key holds characters that no key has")
    return url, key
