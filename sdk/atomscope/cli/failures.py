"""From an exception to what the user is told and the exit status."""

from __future__ import annotations

from typing import Any

import msgspec

from atomscope.cli.registry import EXIT_ERROR, EXIT_FAILED, EXIT_NOTHING, EXIT_USAGE
from atomscope.errors import (
    APIError,
    APIStatusError,
    AtomscopeError,
    AuditCanceled,
    AuditFailed,
    BadRequestError,
    InvalidInput,
    JobFailed,
    MissingExtra,
    NothingToAudit,
    PayloadTooLargeError,
    UnprocessableEntityError,
    UsageError,
)

EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
"""As a shell reports a program that SIGPIPE ended."""

NOTHING = "nothing_to_audit"
CANNOT_STEER = "cannot_steer"
STRENGTH_TOO_LARGE = "strength_too_large"
_SHOWN = 20


class Interrupted(AtomscopeError):  # noqa: N818
    """Ctrl-C while an audit was waited for; the message says how to get back to it."""


class NotFound(AtomscopeError):  # noqa: N818
    """An atom or a behaviour that the audit or the bundle does not have."""


class Failure(msgspec.Struct, kw_only=True):
    """One failed command, as `--json` prints it under `error`."""

    code: str
    detail: str
    request_id: str | None = None
    errors: list[dict[str, Any]] = []


def failure_of(error: AtomscopeError | OSError) -> tuple[Failure, int]:
    """What to print and the exit status."""
    return _failure(error), _status(error)


def describe(error: AtomscopeError | OSError, failure: Failure) -> str:
    """The failure for people: one line, and one more for each fault of the input."""
    lines = [f"atomscope: {failure.detail}"]
    if isinstance(error, MissingExtra):
        return f"{lines[0]}; install it with\n{error.line}"
    for fault in failure.errors[:_SHOWN]:
        place = ", ".join(
            f"{key} {fault[key]}" for key in ("file", "line", "field") if fault.get(key) is not None
        )
        message = str(fault.get("message", ""))
        lines.append(f"  {place}: {message}" if place else f"  {message}")
    if len(failure.errors) > _SHOWN:
        lines.append(f"  ... and {len(failure.errors) - _SHOWN} more")
    return "\n".join(lines)


def _failure(error: AtomscopeError | OSError) -> Failure:
    if isinstance(error, APIStatusError):
        return Failure(
            code=error.code, detail=str(error), request_id=error.request_id, errors=list(error.errors)
        )
    if isinstance(error, APIError):
        return Failure(code="api_error", detail=str(error), request_id=error.request_id)
    if isinstance(error, (AuditFailed, JobFailed)):
        return Failure(code=error.code, detail=str(error), errors=list(error.errors))
    if isinstance(error, InvalidInput):
        return Failure(code=error.code, detail=error.detail, errors=msgspec.to_builtins(error.problems))
    if isinstance(error, MissingExtra):
        return Failure(code="missing_extra", detail=f"{error}", errors=[{"message": error.line}])
    return Failure(code=_code(type(error).__name__), detail=str(error))


def _status(error: AtomscopeError | OSError) -> int:
    if isinstance(error, NothingToAudit) or (isinstance(error, AuditFailed) and error.code == NOTHING):
        return EXIT_NOTHING
    too_large = isinstance(error, UnprocessableEntityError) and error.code == STRENGTH_TOO_LARGE
    if isinstance(error, UsageError) or too_large:
        return EXIT_USAGE
    if isinstance(error, Interrupted):
        return EXIT_INTERRUPTED
    if isinstance(error, UnprocessableEntityError) and error.code == CANNOT_STEER:
        return EXIT_ERROR  # as without a service: there is no such atom, say
    refused = (BadRequestError, PayloadTooLargeError, UnprocessableEntityError)
    if isinstance(error, (AuditFailed, AuditCanceled, JobFailed, InvalidInput, *refused)):
        return EXIT_FAILED
    return EXIT_ERROR


def _code(name: str) -> str:
    """`BundleError` -> `bundle_error`."""
    return "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))
