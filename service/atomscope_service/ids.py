"""Opaque ids: a prefix that names the resource and a UUIDv7 in hexadecimal."""

from __future__ import annotations

import re
import secrets
import threading
import time
from typing import Literal

from atomscope.types.jobs import JobKind

Prefix = Literal[
    "aud",
    "atr",
    "mdl",
    "ds",
    "ada",
    "str",
    "key",
    "upl",
    "evt",
    "evl",
    "prj",
    "unt",
    "idm",
    "del",
    "req",
    "use",
]

JOB_PREFIXES: dict[JobKind, Prefix] = {"attribution": "atr", "evaluation": "evl"}

_ID = re.compile(r"[a-z]{2,3}_[0-9a-f]{32}")
_lock = threading.Lock()
_last_stamp = 0


def uuid7_hex() -> str:
    """A UUIDv7 (RFC 9562) as 32 hexadecimal digits.

    The 12 bits after the milliseconds hold a fraction of the millisecond, and a stamp is never given
    twice, so that the ids of one process sort in the order in which they were made.
    """
    global _last_stamp  # noqa: PLW0603  (the one piece of state that keeps ids rising)
    with _lock:
        nanoseconds = time.time_ns()
        milliseconds, rest = divmod(nanoseconds, 1_000_000)
        stamp = max((milliseconds << 12) | (rest * 4096 // 1_000_000), _last_stamp + 1)
        _last_stamp = stamp
    value = (stamp >> 12) << 80 | 0x7 << 76 | (stamp & 0xFFF) << 64 | 0b10 << 62 | secrets.randbits(62)
    return f"{value:032x}"


def new_id(prefix: Prefix) -> str:
    """A new id such as `aud_0199...`; ids of one prefix sort by the time they were made."""
    return f"{prefix}_{uuid7_hex()}"


def is_id(value: str, prefix: Prefix) -> bool:
    """Whether `value` has the form of an id of this prefix; says nothing about whether it exists."""
    return value.startswith(f"{prefix}_") and _ID.fullmatch(value) is not None
