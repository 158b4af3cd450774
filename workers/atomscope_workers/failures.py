"""What is told of an error that ended a unit or a job."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from atomscope.errors import InvalidInput

DETAIL = 500
"""Characters of an unexpected error that are reported."""
_FOLDERS = re.compile(r"(?<![\w/.:])/(?:[\w.@+=~-]+/)+")


def failure(error: Exception) -> dict[str, Any]:
    """The fields of a failed report: bad input is told as it is and not tried again, the rest is."""
    if isinstance(error, InvalidInput):
        return {
            "code": error.code,
            "detail": error.detail,
            "retryable": False,
            "errors": [msgspec.to_builtins(problem) for problem in error.problems],
        }
    return {"code": "worker_error", "detail": describe(error), "retryable": True}


def describe(error: Exception) -> str:
    """The class and message of an unexpected error, without the folders of this machine, cut to size."""
    return _FOLDERS.sub("", f"{type(error).__name__}: {error}")[:DETAIL]
