"""The metadata tables. Every row belongs to a project; every timestamp is UTC.

Portable between SQLite and PostgreSQL: JSON columns, strings for ids and enumerations, no server
defaults that differ.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UTCDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC on every backend; SQLite stores them without an offset."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a time zone was given to the database")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    type_annotation_map = {datetime: UTCDateTime, dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012


class Project(Base):
    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    created_at: Mapped[datetime]


class ProjectRow:
    """Columns of every row that belongs to a project."""

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64), ForeignKey("projects.id"), index=True)
    created_at: Mapped[datetime]


class APIKeyRow(ProjectRow, Base):
    __tablename__ = "api_keys"

    name: Mapped[str] = mapped_column(String(200))
    hint: Mapped[str] = mapped_column(String(16))
    hmac: Mapped[str] = mapped_column(String(64), unique=True)
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class UploadRow(ProjectRow, Base):
    __tablename__ = "uploads"

    purpose: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    files: Mapped[list[Any]]
    """Per file: path, size, sha256, key, multipart id where the store has one."""
    expires_at: Mapped[datetime]


class ModelRow(ProjectRow, Base):
    __tablename__ = "models"

    name: Mapped[str] = mapped_column(String(200))
    source: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    prefix: Mapped[str] = mapped_column(String(512))
    sha256: Mapped[str | None] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)
    architecture: Mapped[str | None] = mapped_column(String(200))
    hub_id: Mapped[str | None] = mapped_column(String(400))
    revision: Mapped[str | None] = mapped_column(String(64))
    error: Mapped[str | None] = mapped_column(Text)


class AdapterRow(ProjectRow, Base):
    __tablename__ = "adapters"

    name: Mapped[str] = mapped_column(String(200))
    prefix: Mapped[str] = mapped_column(String(512))
    sha256: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)
    rank: Mapped[int] = mapped_column(Integer)
    target_modules: Mapped[list[Any]]
    base_model_name: Mapped[str | None] = mapped_column(String(400))


class DatasetRow(ProjectRow, Base):
    __tablename__ = "datasets"

    name: Mapped[str] = mapped_column(String(200))
    format: Mapped[str] = mapped_column(String(16))
    key: Mapped[str] = mapped_column(String(512))
    sha256: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)


class AuditRow(ProjectRow, Base):
    __tablename__ = "audits"

    name: Mapped[str | None] = mapped_column(String(200))
    status: Mapped[str] = mapped_column(String(16), index=True)
    stage: Mapped[str | None] = mapped_column(String(16))
    attempt: Mapped[int] = mapped_column(Integer)
    base_model_id: Mapped[str] = mapped_column(String(64), index=True)
    adapter_id: Mapped[str] = mapped_column(String(64), index=True)
    dataset_id: Mapped[str] = mapped_column(String(64), index=True)
    config: Mapped[dict[str, Any]]
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    warnings: Mapped[list[Any]]
    shards: Mapped[int | None] = mapped_column(Integer)
    planned_units: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """Stage -> units, of `PLANNED` stages that `validate` told of; null of audits from before any was."""
    n_documents: Mapped[int | None] = mapped_column(Integer)
    n_atoms: Mapped[int | None] = mapped_column(Integer)
    bundle_prefix: Mapped[str | None] = mapped_column(String(512))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    event_sequence: Mapped[int] = mapped_column(Integer)
    """Sequence of its last event."""
    parent_id: Mapped[str | None] = mapped_column(String(64), index=True)
    """Of a refit: the audit that it is a refit of, which may be deleted since."""
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    gradients_expired_at: Mapped[datetime | None]
    """When it let go of its gradients; null while it has them."""


class ExtractionUseRow(ProjectRow, Base):
    """That an audit uses what an audit extracted, itself or another one; without any, that is removed."""

    __tablename__ = "extraction_uses"
    __table_args__ = (
        UniqueConstraint("audit_id", "extraction"),
        Index("ix_extraction_uses_inputs", "project_id", "base_sha256", "adapter_sha256"),
    )

    audit_id: Mapped[str] = mapped_column(String(64), ForeignKey("audits.id", ondelete="CASCADE"))
    extraction: Mapped[str] = mapped_column(String(64), index=True)
    """Id of the audit that extracted, which may be deleted since."""
    base_sha256: Mapped[str] = mapped_column(String(64))
    adapter_sha256: Mapped[str] = mapped_column(String(64))


class UnitRow(ProjectRow, Base):
    """One stage, or one shard of it, of one attempt at an audit: the record of who holds it."""

    __tablename__ = "units"
    __table_args__ = (
        UniqueConstraint("audit_id", "attempt", "stage", "index"),
        Index("ix_units_lease", "state", "lease_expires_at"),
    )

    audit_id: Mapped[str] = mapped_column(String(64), ForeignKey("audits.id", ondelete="CASCADE"), index=True)
    attempt: Mapped[int] = mapped_column(Integer)
    stage: Mapped[str] = mapped_column(String(16))
    index: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(16))
    """`queued`, `leased`, `succeeded`, `failed` or `stopped`."""
    fence: Mapped[int] = mapped_column(Integer)
    """Rises with every send; reports under another fence are rejected."""
    sequence: Mapped[int] = mapped_column(Integer)
    """Of the last report accepted under the live fence."""
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None]
    """While `queued`, when a send that nobody took up is repeated; while `leased`, when the lease ends."""
    done: Mapped[int] = mapped_column(Integer)
    total: Mapped[int] = mapped_column(Integer)
    progress_unit: Mapped[str] = mapped_column(String(16))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)


class EventRow(ProjectRow, Base):
    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("audit_id", "sequence"),)

    audit_id: Mapped[str] = mapped_column(String(64), ForeignKey("audits.id", ondelete="CASCADE"), index=True)
    sequence: Mapped[int] = mapped_column(Integer)
    type: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]]


class SteeredAdapterRow(ProjectRow, Base):
    __tablename__ = "steered_adapters"

    name: Mapped[str | None] = mapped_column(String(200))
    audit_id: Mapped[str] = mapped_column(String(64), index=True)
    strengths: Mapped[dict[str, Any]]
    format: Mapped[str] = mapped_column(String(16))
    unit: Mapped[str] = mapped_column(String(16))
    power: Mapped[str | None] = mapped_column(String(8))
    """Null where the bundle does not say."""
    prefix: Mapped[str] = mapped_column(String(512))
    files: Mapped[list[Any]]
    size: Mapped[int] = mapped_column(BigInteger)


class JobRow(ProjectRow, Base):
    """Work that was asked of a finished audit: the request, and the record of who does it."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_lease", "status", "lease_expires_at"),)

    audit_id: Mapped[str] = mapped_column(String(64), ForeignKey("audits.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    """`attribution` or `evaluation`."""
    status: Mapped[str] = mapped_column(String(16))
    request: Mapped[dict[str, Any]]
    fence: Mapped[int] = mapped_column(Integer)
    """Rises with every send; reports under another fence are rejected."""
    sequence: Mapped[int] = mapped_column(Integer)
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None]
    """While `queued`, when a send that nobody took up is repeated; while `running`, when the lease ends."""
    done: Mapped[int] = mapped_column(Integer)
    total: Mapped[int] = mapped_column(Integer)
    result_key: Mapped[str | None] = mapped_column(String(512))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class IdempotencyRow(ProjectRow, Base):
    __tablename__ = "idempotency_keys"
    __table_args__ = (UniqueConstraint("project_id", "route", "key"),)

    key: Mapped[str] = mapped_column(String(255))
    route: Mapped[str] = mapped_column(String(400))
    """Method and path of the request."""
    body_sha256: Mapped[str] = mapped_column(String(64))
    status: Mapped[int | None] = mapped_column(Integer)
    """Of the answer; null while the first request is still running."""
    headers: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    body: Mapped[str | None] = mapped_column(Text)


class DeletionRow(ProjectRow, Base):
    """A key prefix whose objects the control worker has still to remove."""

    __tablename__ = "deletions"

    prefix: Mapped[str] = mapped_column(String(512))
    """Ends in `/`: a folder; else one object."""
