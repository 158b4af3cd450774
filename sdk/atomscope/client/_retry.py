"""When a request is sent again, and after how long: one policy for both clients.

Two retries on 408, 429, 5xx, 409 while an idempotent request is still running, and lost connections; 0.5
to 8 seconds with jitter, so that clients that failed together do not come back together. `Retry-After`
goes before, up to a minute; a longer pause is the caller's to make, so that answer is raised at once.
Every POST carries an `Idempotency-Key`, the same for each attempt, so repeating it is safe.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_RETRY_AFTER = 60.0


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long; times in seconds."""

    max_retries: int = 2
    first: float = 0.5
    longest: float = 8.0

    def pause(self, attempt: int) -> float:
        """Seconds before retry `attempt` (from 0): doubled each time, less up to a quarter at random."""
        full = min(self.first * 2.0 ** min(attempt, 30), self.longest)
        return full * (0.75 + 0.25 * random.random())  # noqa: S311  (jitter, not a secret)

    def after_answer(self, attempt: int, status: int, code: str, headers: Mapping[str, str]) -> float | None:
        """Seconds before the retry that an answer calls for; None when the answer stands."""
        if attempt >= self.max_retries or not is_retryable(status, code):
            return None
        asked = retry_after(headers.get("retry-after", ""))
        if asked is None:
            return self.pause(attempt)
        return asked if asked <= LONGEST_RETRY_AFTER else None


def is_retryable(status: int, code: str) -> bool:
    """Whether an answer of this status and problem code may come out otherwise the next time."""
    return status in (408, 429) or status >= 500 or (status == 409 and code == "idempotency_in_progress")


def retry_after(value: str) -> float | None:
    """Seconds that a `Retry-After` header asks for, in either of its forms; None without a usable one."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:  # neither form: as if it were not there
        return None
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())
