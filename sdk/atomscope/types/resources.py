"""The REST API's requests and responses (`/v1`), shared by the service and the clients.

Times are RFC 3339 in UTC. Ids are opaque: a prefix (`aud_`, `mdl_`, `ds_`, `ada_`, `str_`, `key_`,
`upl_`, `evt_`, `atr_`, `evl_`) and a UUIDv7 in hexadecimal.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec

from atomscope.types.atoms import Atom, Behaviour
from atomscope.types.attribution import AttributionQuery, AttributionResult
from atomscope.types.evaluation import EvaluationQuery, EvaluationResult
from atomscope.types.spec import AuditConfig, VectorPower
from atomscope.types.steering import Format, Unit
from atomscope.types.work import Stage

T = TypeVar("T")

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
AuditStatus = Literal["queued", "running", "canceling", "succeeded", "failed", "canceled"]
JobStatus = Literal["queued", "running", "succeeded", "failed"]

TERMINAL: frozenset[AuditStatus] = frozenset({"succeeded", "failed", "canceled"})


class Page(msgspec.Struct, Generic[T], kw_only=True):
    """One page of a list; pass `next` as `cursor` for the one after it."""

    data: list[T]
    has_more: bool
    next: str | None = None


class Problem(msgspec.Struct, kw_only=True):
    """An error, as `application/problem+json` (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    param: str | None = None
    errors: list[dict[str, Any]] = []


# ------------------------------------------------------------------- audits


class AuditCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    base_model: str
    """`mdl_...`"""
    adapter: str
    """`ada_...`"""
    dataset: str
    """`ds_...`"""
    name: Name | None = None
    preset: str = "default"
    """Name of the settings that `config` may replace: one of `GET /v1/presets`."""
    config: dict[str, Any] = {}
    """Fields of `AuditConfig`; those that are not given are the preset's."""
    metadata: dict[str, Annotated[str, msgspec.Meta(max_length=500)]] = {}


class Progress(msgspec.Struct, kw_only=True, frozen=True):
    done: int
    total: int
    unit: str
    """`documents`, `shards`, `fits` or `steps`."""


class AuditError(msgspec.Struct, kw_only=True, frozen=True):
    code: str
    detail: str
    errors: list[dict[str, Any]] = []


GradientsKept = Literal["kept", "expired", "sketch", "none"]
"""What is left of an audit's gradients: all; nothing any more; a sketch, or nothing, since its end (as its
setting `gradients` says)."""


class Audit(msgspec.Struct, kw_only=True):
    id: str
    name: str | None
    status: AuditStatus
    stage: Stage | None
    progress: Progress | None
    base_model: str
    adapter: str
    dataset: str
    config: AuditConfig
    metadata: dict[str, str]
    n_documents: int | None
    n_atoms: int | None
    warnings: list[str]
    error: AuditError | None
    created_at: str
    started_at: str | None
    ended_at: str | None
    parent: str | None = None
    """Of a refit: the audit whose gradients it reads, which may be deleted since."""
    gradients: GradientsKept | None = None
    """What is left of its gradients, once it has ended: without them there is no `exact`, and without a
    sketch either no refit."""
    gradients_expire_at: str | None = None
    """When they expire; null when they do not, or have."""
    object: Literal["audit"] = "audit"


class RefitCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`POST /v1/audits/{id}/refits`: the fit of an audit once more, on the gradients that it stored."""

    name: Name | None = None
    preset: str | None = None
    """Name of the settings to start from, but for those of the extraction; without it, the audit's own."""
    config: dict[str, Any] = {}
    """Fields of `AuditConfig` that take their place; those of the extraction cannot change."""
    metadata: dict[str, Annotated[str, msgspec.Meta(max_length=500)]] = {}


class Event(msgspec.Struct, kw_only=True, frozen=True):
    """A row of an audit's history, also sent as a server-sent event whose `id` is `sequence`."""

    id: str
    audit_id: str
    sequence: int
    """Rises by one within an audit, from 1; `Last-Event-ID` takes it."""
    type: str
    """`audit.queued`, `audit.running`, `audit.planned`, `audit.stage`, `audit.progress`, `audit.warning`,
    `audit.unit_retried`, `audit.canceling`, `audit.succeeded`, `audit.failed`, `audit.canceled`."""
    data: dict[str, Any]
    created_at: str


class DocumentMatch(msgspec.Struct, kw_only=True, frozen=True):
    """A document of an atom, as `GET /v1/audits/{id}/atoms/{index}/documents` lists them."""

    document: int
    value: float
    id: str
    messages: list[dict[str, str]]
    n_tokens: int
    n_target_tokens: int
    loss: float


# ------------------------------------------------------------- attributions


class AttributionCreate(AttributionQuery, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/audits/{id}/attributions`."""


class Attribution(msgspec.Struct, kw_only=True, frozen=True):
    """The attribution of one query to what an audit found; a worker's job."""

    id: str
    audit: str
    status: JobStatus
    progress: Progress | None
    """While it runs."""
    query: AttributionQuery
    result: AttributionResult | None
    """Once it has succeeded; left out of lists."""
    error: AuditError | None
    created_at: str
    started_at: str | None
    ended_at: str | None
    object: Literal["attribution"] = "attribution"


# -------------------------------------------------------------- evaluations


class EvaluationCreate(EvaluationQuery, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/audits/{id}/evaluations`."""


class Evaluation(msgspec.Struct, kw_only=True, frozen=True):
    """One evaluation of steering; a worker's job."""

    id: str
    audit: str
    status: JobStatus
    progress: Progress | None
    """While it runs."""
    query: EvaluationQuery
    result: EvaluationResult | None
    """Once it has succeeded; left out of lists."""
    error: AuditError | None
    created_at: str
    started_at: str | None
    ended_at: str | None
    object: Literal["evaluation"] = "evaluation"


# ------------------------------------------------------------------ findings


class BehaviourPage(Page[Behaviour], kw_only=True):
    """A page of behaviours, the list of their documents left out."""


class AtomPage(Page[Atom], kw_only=True):
    """A page of atoms."""


class BundleFile(msgspec.Struct, kw_only=True, frozen=True):
    path: str
    size: int
    sha256: str
    url: str
    """Short-lived; needs no key."""


class BundleListing(msgspec.Struct, kw_only=True, frozen=True):
    """`GET /v1/audits/{id}/bundle`: every file of the bundle, the manifest first in `files`."""

    audit_id: str
    format_version: int
    size: int
    files: list[BundleFile]


# ---------------------------------------------------------- steered adapters


class SteeredAdapterCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    audit: str
    strengths: Annotated[dict[str, float], msgspec.Meta(min_length=1, max_length=100)]
    """Atom (`7` or `atom:7`) or behaviour (`behaviour:3`) -> strength; positive means more of it."""
    name: Name | None = None
    format: Format = "adapter"
    """`adapter`: a PEFT folder of the same rank. `delta`: a PEFT adapter of twice the rank that goes beside
    the audited one, linear in its strength. `vector`: what is added to the weights. `gguf`, `gguf-delta`: the
    first two for llama.cpp."""
    unit: Unit = "norm"
    """What strengths are in: norms of the adapter, or, `alpha`, stored vectors."""
    power: VectorPower | None = None
    """Power of (lambda + damping) in the unprojection; by default the audit's."""


class SteeredAdapter(msgspec.Struct, kw_only=True):
    id: str
    name: str | None
    audit: str
    strengths: dict[str, float]
    format: Format
    unit: Unit
    power: VectorPower | None
    size: int
    created_at: str
    object: Literal["steered_adapter"] = "steered_adapter"


class FileDownload(msgspec.Struct, kw_only=True, frozen=True):
    path: str
    size: int
    url: str


class SteeredAdapterDownload(msgspec.Struct, kw_only=True, frozen=True):
    """`GET /v1/steered-adapters/{id}/download`."""

    id: str
    files: list[FileDownload]


# ------------------------------------------------------------ keys and health


class APIKeyCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: Name


class APIKey(msgspec.Struct, kw_only=True):
    id: str
    name: str
    hint: str
    """First characters of the key, enough to recognise it."""
    created_at: str
    last_used_at: str | None
    revoked_at: str | None
    key: str | None = None
    """The key itself: only in the answer that created it."""
    object: Literal["api_key"] = "api_key"


class Health(msgspec.Struct, kw_only=True):
    status: Literal["ok", "degraded"]
    version: str
    checks: dict[str, str]


class Deleted(msgspec.Struct, kw_only=True):
    id: str
    deleted: Literal[True] = True
