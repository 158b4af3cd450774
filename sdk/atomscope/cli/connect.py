"""The options by which a command finds the service, and ids on the command line."""

from __future__ import annotations

import math
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path

from atomscope.client import Client
from atomscope.client._settings import API_KEY_FILE_VARIABLE, API_KEY_VARIABLE, MissingKey, read_key_file
from atomscope.errors import UsageError
from atomscope.result_folder import enclosing_bundle

_AUDIT_ID = re.compile(r"aud_[0-9a-f]{32}")


def add_connection(parser: ArgumentParser) -> None:
    """`--base-url` and `--api-key-file`. A key itself is never an argument: other users see those."""
    group = parser.add_argument_group("service")
    group.add_argument("--base-url", metavar="URL", help="default: ATOMSCOPE_BASE_URL, else this machine")
    group.add_argument(
        "--api-key-file",
        metavar="FILE",
        type=Path,
        help="default: the key in ATOMSCOPE_API_KEY, or in the file that ATOMSCOPE_API_KEY_FILE names",
    )


def connect(args: Namespace) -> Client:
    """A client for what `add_connection` added and the environment say; raises `UsageError`."""
    key = None if args.api_key_file is None else read_key_file(args.api_key_file)
    try:
        return Client(base_url=args.base_url, api_key=key)
    except MissingKey as error:
        raise UsageError(
            f"no API key: set {API_KEY_VARIABLE}, or name a file that holds it by --api-key-file or "
            f"{API_KEY_FILE_VARIABLE}"
        ) from error


def is_audit_id(target: str) -> bool:
    """Whether a target is an audit of the service; anything else is the path or URI of a bundle."""
    return _AUDIT_ID.fullmatch(target) is not None


def audit_id(text: str) -> str:
    """Argument type of an audit's id."""
    if not is_audit_id(text):
        raise ArgumentTypeError(f"not an audit id (aud_...): {text!r}")
    return text


def number(kind: type[int] | type[float], low: float) -> Callable[[str], float]:
    """Argument type of a finite number that is at least `low`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or value < low or (isinstance(value, float) and not math.isfinite(value)):
            raise ArgumentTypeError(
                f"not {'a whole number' if kind is int else 'a number'} >= {low:g}: {text!r}"
            )
        return value

    return parse


def out_folder(text: str) -> Path:
    """Argument type of a folder to be written: no address, and not within a bundle, which lists its files."""
    if not text:
        raise ArgumentTypeError("a folder is expected; it is empty")
    if "://" in text:
        raise ArgumentTypeError(f"a folder on this machine is expected, not an address: {text!r}")
    folder = Path(text)
    bundle = enclosing_bundle(folder)
    if bundle is not None:
        raise ArgumentTypeError(f"{text!r} is within the bundle {str(bundle)!r}: give one outside of it")
    return folder
