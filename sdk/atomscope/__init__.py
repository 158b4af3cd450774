"""Atomscope: audit what a fine-tune taught a model.

import atomscope

client = atomscope.Client()
audit = client.audits.create(base_model="mdl_...", adapter="adapter/", dataset="train.jsonl").wait()
print(audit.behaviours, audit.atoms)
audit.steer({audit.atoms[0]: -0.1}).save("steered/")

bundle = atomscope.open("s3://bucket/audits/...")     # the same, with no server
"""

from importlib.metadata import version

from atomscope.bundle import AtomList, BehaviourList, Bundle, BundleAtom, BundleBehaviour
from atomscope.bundle import open_bundle as open  # atomscope.open is its public name
from atomscope.client import AsyncAudit, AsyncClient, Audit, Client
from atomscope.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AtomscopeError,
    AttributionFailed,
    AuditCanceled,
    AuditFailed,
    AuthenticationError,
    BadRequestError,
    BundleError,
    ConflictError,
    EvaluationFailed,
    InternalServerError,
    InvalidInput,
    MissingExtra,
    NotFoundError,
    NothingToAudit,
    PayloadTooLargeError,
    PermissionDeniedError,
    RateLimitError,
    SteeringError,
    StrengthError,
    UnprocessableEntityError,
    UsageError,
    WaitTimeout,
)
from atomscope.store import ObjectNotFound, StoreError
from atomscope.types.evaluation import (
    EvaluationQuery,
    EvaluationResult,
    EvaluationTarget,
    JudgeDetector,
    LengthDetector,
    LogProbabilityDetector,
    NamedDetector,
    PatternDetector,
    Prompt,
    Sampling,
)
from atomscope.types.presets import preset
from atomscope.types.spec import AuditConfig

__version__ = version("atomscope")

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncAudit",
    "AsyncClient",
    "AtomList",
    "AtomscopeError",
    "AttributionFailed",
    "Audit",
    "AuditCanceled",
    "AuditConfig",
    "AuditFailed",
    "AuthenticationError",
    "BadRequestError",
    "BehaviourList",
    "Bundle",
    "BundleAtom",
    "BundleBehaviour",
    "BundleError",
    "Client",
    "ConflictError",
    "EvaluationFailed",
    "EvaluationQuery",
    "EvaluationResult",
    "EvaluationTarget",
    "InternalServerError",
    "InvalidInput",
    "JudgeDetector",
    "LengthDetector",
    "LogProbabilityDetector",
    "MissingExtra",
    "NamedDetector",
    "NotFoundError",
    "NothingToAudit",
    "ObjectNotFound",
    "PatternDetector",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "Prompt",
    "RateLimitError",
    "Sampling",
    "SteeringError",
    "StoreError",
    "StrengthError",
    "UnprocessableEntityError",
    "UsageError",
    "WaitTimeout",
    "__version__",
    "open",
    "preset",
]
