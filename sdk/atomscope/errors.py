"""Every exception that Atomscope raises on purpose.

AtomscopeError
├── StoreError                 (atomscope.store) the object store
│   └── ObjectNotFound
├── BundleError                a bundle that is missing, damaged or of a newer format
├── InvalidInput               a model, adapter or data set that cannot be audited
│   └── NothingToAudit         it is well-formed, but nothing is left to audit
├── SteeringError              a steering request that cannot be met
├── UsageError                 a call that cannot be made as it was written; a ValueError too
│   ├── MissingExtra           it needs an extra that is not installed
│   └── StrengthError          a strength beyond what is accepted; a SteeringError too
├── AuditFailed                `wait()` ended on an audit that failed
├── AuditCanceled              `wait()` ended on an audit that was canceled
├── JobFailed                  what was asked of a finished audit ended on an error
│   ├── AttributionFailed
│   └── EvaluationFailed
├── WaitTimeout                `wait(timeout=)` ran out
└── APIError                   the service answered, or could not be reached
    ├── APIConnectionError
    │   └── APITimeoutError
    └── APIStatusError         carries status, code and request id
        ├── BadRequestError            400
        ├── AuthenticationError        401
        ├── PermissionDeniedError      403
        ├── NotFoundError              404
        ├── ConflictError              409
        ├── PayloadTooLargeError       413
        ├── UnprocessableEntityError   422
        ├── RateLimitError             429
        └── InternalServerError        5xx
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec


class AtomscopeError(Exception):
    """Base of every exception of this package."""


class BundleError(AtomscopeError):
    """A bundle that is missing, incomplete, damaged, or of a format this version does not read."""


class InputProblem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One fault of an input: where it is and what would be accepted."""

    message: str
    file: str | None = None
    line: int | None = None
    """1-based line of a JSONL file, or 1-based row of a Parquet file."""
    field: str | None = None


class InvalidInput(AtomscopeError):  # noqa: N818
    """A model, adapter or data set that cannot be audited, told before any work is done.

    `code` is stable and machine-readable (`unsupported_adapter`, `bad_row`, ...).
    """

    def __init__(self, code: str, detail: str, problems: list[InputProblem] | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.problems = problems or []


class NothingToAudit(InvalidInput):
    """The input is well-formed but holds nothing to audit: an empty set, one document, no targets."""


class SteeringError(AtomscopeError):
    """A steering request that cannot be met: an unknown atom, names that do not match the adapter."""


class UsageError(AtomscopeError, ValueError):
    """A call that cannot be made as it was written, told before anything is sent: an argument that is
    neither an id nor an existing path, a setting out of range, no API key."""


class StrengthError(SteeringError, UsageError):
    """A strength beyond what is accepted."""


class MissingExtra(UsageError):  # noqa: N818
    """Something whose extra is not installed; `line` is what installs it."""

    def __init__(self, what: str, extra: str) -> None:
        self.line = f"pip install 'atomscope[{extra}]'"
        super().__init__(f"{what} needs the {extra} extra")


class AuditFailed(AtomscopeError):  # noqa: N818
    """The audit ended as `failed`. `code` and `errors` are those of the audit."""

    def __init__(
        self, audit_id: str, code: str, detail: str, errors: list[dict[str, Any]] | None = None
    ) -> None:
        super().__init__(f"audit {audit_id} failed ({code}): {detail}")
        self.audit_id = audit_id
        self.code = code
        self.detail = detail
        self.errors = errors or []


class JobFailed(AtomscopeError):  # noqa: N818
    """What was asked of a finished audit ended as `failed`. `code` and `errors` are those of the job."""

    what: ClassVar[str]

    def __init__(self, job_id: str, code: str, detail: str, errors: list[dict[str, Any]]) -> None:
        super().__init__(f"{self.what} {job_id} failed ({code}): {detail}")
        self.job_id = job_id
        self.code = code
        self.detail = detail
        self.errors = errors


class AttributionFailed(JobFailed):
    """An attribution ended as `failed`."""

    what = "attribution"


class EvaluationFailed(JobFailed):
    """An evaluation ended as `failed`."""

    what = "evaluation"


class AuditCanceled(AtomscopeError):  # noqa: N818
    """The audit ended as `canceled`."""


class WaitTimeout(AtomscopeError):  # noqa: N818
    """`wait(timeout=)` ran out before the audit ended; the audit goes on."""


class APIError(AtomscopeError):
    """A request to the service did not succeed."""

    request_id: str | None = None
    """The id under which the service logged the request, or the one that the client sent with it."""


class APIConnectionError(APIError):
    """The service could not be reached."""


class APITimeoutError(APIConnectionError):
    """The service did not answer in time."""


class APIStatusError(APIError):
    """The service answered with an error status, as problem+json (RFC 9457)."""

    def __init__(self, *, status: int, problem: dict[str, Any], request_id: str | None) -> None:
        self.status = status
        self.problem = problem
        self.code: str = str(problem.get("code", "unknown"))
        self.param: str | None = problem.get("param")
        self.errors: list[dict[str, Any]] = problem.get("errors") or []
        self.request_id = request_id
        detail = problem.get("detail") or problem.get("title") or "no detail"
        super().__init__(f"{status} {self.code}: {detail} (request {request_id or 'unknown'})")


class BadRequestError(APIStatusError):
    """400."""


class AuthenticationError(APIStatusError):
    """401: no key, or a key that is wrong or revoked."""


class PermissionDeniedError(APIStatusError):
    """403."""


class NotFoundError(APIStatusError):
    """404: no such resource in the key's project."""


class ConflictError(APIStatusError):
    """409: the resource is in use or in another state."""


class PayloadTooLargeError(APIStatusError):
    """413: over a stated limit."""


class UnprocessableEntityError(APIStatusError):
    """422: a value was understood and refused; `param` or `errors` says which."""


class RateLimitError(APIStatusError):
    """429: retried with `Retry-After` before it is raised."""


class InternalServerError(APIStatusError):
    """5xx: retried before it is raised."""
