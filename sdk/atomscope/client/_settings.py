"""Where the service is and which key opens it: arguments first, then the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from atomscope.errors import UsageError

DEFAULT_BASE_URL = "http://127.0.0.1:8321"
"""Where `atomscope up` serves by default."""
BASE_URL_VARIABLE = "ATOMSCOPE_BASE_URL"
API_KEY_VARIABLE = "ATOMSCOPE_API_KEY"
API_KEY_FILE_VARIABLE = "ATOMSCOPE_API_KEY_FILE"

_KEY = re.compile(r"[\x21-\x7e]+")
_MAX_KEY_FILE_BYTES = 4096


class MissingKey(UsageError):  # noqa: N818
    """No API key was given, by argument or in the environment."""


def connection(
    base_url: str | None = None, api_key: str | None = None, environ: Mapping[str, str] | None = None
) -> tuple[str, str]:
    """Base URL (it may have a path, but no trailing slash) and key: as given, else from the environment.

    That is `ATOMSCOPE_BASE_URL`, and `ATOMSCOPE_API_KEY` before the file that `ATOMSCOPE_API_KEY_FILE`
    names. Raises `UsageError` for an address that is not plain http(s), no key, a key that could not be
    sent in a header, or a key file that cannot be read.
    """
    environ = os.environ if environ is None else environ
    address = base_url if base_url is not None else environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL
    key = api_key if api_key is not None else environ.get(API_KEY_VARIABLE) or None
    if key is None and environ.get(API_KEY_FILE_VARIABLE):
        key = read_key_file(Path(environ[API_KEY_FILE_VARIABLE]))
    if key is None:
        raise MissingKey(f"no API key: set {API_KEY_VARIABLE} or {API_KEY_FILE_VARIABLE}, or pass api_key=")
    if not _KEY.fullmatch(key):
        raise UsageError("the API key is empty or holds a space, a line break or a non-ASCII character")
    return _check_address(address), key


def read_key_file(path: Path) -> str:
    """The key in a file, its surrounding white space removed; raises `UsageError`."""
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise UsageError(f"the API key file {path} cannot be read: {error.strerror or error}") from error
    key = content.decode("ascii", errors="replace").strip()
    if not _KEY.fullmatch(key):
        raise UsageError(f"the API key file {path} does not hold one key")
    return key


def _check_address(address: str) -> str:
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"not a base URL: {address!r} ({error})") from error
    if parts.scheme not in {"http", "https"} or not host:
        raise UsageError(
            f"not a base URL: {address!r}; it must begin with http:// or https:// and name a host"
        )
    if parts.username is not None or parts.password is not None:
        raise UsageError("the base URL must not hold a user or password; give the key apart from it")
    if parts.query or parts.fragment:
        raise UsageError(f"not a base URL: {address!r}; it must not have a query or a fragment")
    return address.rstrip("/")
