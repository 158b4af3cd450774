"""When a request is sent again, and after how long: one policy for both clients.

Two retries on 408, 429, 5xx, 409 while an idempotent request is still running, and lost connections; 0.5
to 8 seconds with jitter, so that clients that failed together do not come back together. `Retry-After`
goes before, when it is a minute or less. Every POST carries an `Idempotency-Key`, so repeating it is safe.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_RETRIES = 2
FIRST_DELAY, LONGEST_DELAY = 0.5, 8.0
LONGEST_RETRY_AFTER = 60.0


def retryable(status: int, code: str) -> bool:
    """Whether an answer of this status and problem code may come out otherwise the next time."""
    return status in (408, 429) or status >= 500 or (status == 409 and code == "idempotency_in_progress")


def delay(attempt: int, headers: Mapping[str, str]) -> float:
    """Seconds before retry `attempt` (from 0)."""
    asked = _retry_after(headers.get("retry-after", ""))
    if asked is not None and 0 <= asked <= LONGEST_RETRY_AFTER:
        return asked
    longest = min(FIRST_DELAY * 2**attempt, LONGEST_DELAY)
    return longest * (0.75 + 0.25 * random.random())  # noqa: S311  (jitter, not a secret)


def _retry_after(value: str) -> float | None:
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # neither form: as if it were not there
        return None
