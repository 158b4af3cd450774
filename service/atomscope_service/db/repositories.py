"""Repositories: rows of one project. None can be built without a project id.

They never commit: a transaction is a `Database.read()` or `Database.write()` block.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from atomscope.bundle.layout import project_prefix
from atomscope.types.jobs import JobKind
from atomscope.types.resources import Progress
from atomscope.types.work import FAN_OUT
from atomscope_service.db.models import (
    AdapterRow,
    APIKeyRow,
    AuditRow,
    DatasetRow,
    DeletionRow,
    EventRow,
    IdempotencyRow,
    JobRow,
    ModelRow,
    ProjectRow,
    SteeredAdapterRow,
    UnitRow,
    UploadRow,
)
from atomscope_service.ids import new_id

R = TypeVar("R", bound=ProjectRow)

LIVE_STATUSES = ("queued", "running", "canceling")
"""Of audits that have not ended."""


class Repository(Generic[R]):
    """Rows of one table and one project; rows of others are never read, changed or removed."""

    row: ClassVar[type[Any]]

    def __init__(self, session: Session, project_id: str) -> None:
        if not project_id:
            raise ValueError("a repository needs a project id")
        self.session = session
        self.project_id = project_id

    def get(self, row_id: str, *, lock: bool = False) -> R | None:
        """The row of that id. `lock` keeps others from changing it until the transaction ends."""
        query = select(self.row).where(self.row.id == row_id, self.row.project_id == self.project_id)
        return self.session.scalar(query.with_for_update() if lock else query)

    def page(self, *, limit: int, before: str | None = None, **equal: Any) -> Sequence[R]:  # noqa: ANN401
        """Up to `limit` rows, newest first, older than the id `before`; columns of `equal` match."""
        query = select(self.row).where(self.row.project_id == self.project_id)
        query = query.filter_by(**equal)
        if before is not None:
            query = query.where(self.row.id < before)
        return self.session.scalars(query.order_by(self.row.id.desc()).limit(limit)).all()

    def add(self, row: R) -> R:
        """Insert a row at once, so that a broken constraint shows here."""
        if row.project_id != self.project_id:
            raise ValueError(f"row {row.id} belongs to another project")
        self.session.add(row)
        self.session.flush()
        return row

    def remove(self, row: R) -> bool:
        """Delete a row; False when another transaction already had."""
        query = delete(self.row).where(self.row.id == row.id, self.row.project_id == self.project_id)
        query = query.returning(self.row.id).execution_options(synchronize_session=False)
        removed = self.session.execute(query).first() is not None
        if row in self.session:
            self.session.expunge(row)
        return removed


class Uploads(Repository[UploadRow]):
    row = UploadRow


class Models(Repository[ModelRow]):
    row = ModelRow


class Adapters(Repository[AdapterRow]):
    row = AdapterRow


class Datasets(Repository[DatasetRow]):
    row = DatasetRow


class SteeredAdapters(Repository[SteeredAdapterRow]):
    row = SteeredAdapterRow


class Jobs(Repository[JobRow]):
    row = JobRow

    def live(self, kind: JobKind) -> int:
        """Jobs of a kind and of the project that have not ended."""
        query = select(func.count()).select_from(JobRow).where(JobRow.kind == kind)
        query = query.where(JobRow.project_id == self.project_id, JobRow.ended_at.is_(None))
        return self.session.scalar(query) or 0

    def live_of(self, audit_id: str, **equal: str) -> list[str]:
        """Ids of an audit's jobs that have not ended; columns of `equal` match."""
        query = select(JobRow.id).where(JobRow.project_id == self.project_id, JobRow.audit_id == audit_id)
        query = query.filter_by(**equal)
        return list(self.session.scalars(query.where(JobRow.ended_at.is_(None))))


class Deletions(Repository[DeletionRow]):
    row = DeletionRow

    def add_prefix(self, prefix: str) -> None:
        """Have control remove every object under a prefix (which ends in `/`), or one object."""
        if not prefix.startswith(project_prefix(self.project_id)):
            raise ValueError(f"{prefix!r} is not of project {self.project_id}")
        self.add(
            DeletionRow(
                id=new_id("del"), project_id=self.project_id, created_at=datetime.now(UTC), prefix=prefix
            )
        )


class Audits(Repository[AuditRow]):
    row = AuditRow

    def live_user_of(self, input_id: str) -> str | None:
        """Id of an audit that has not ended and uses this model, adapter or data set."""
        uses = (
            (AuditRow.base_model_id == input_id)
            | (AuditRow.adapter_id == input_id)
            | (AuditRow.dataset_id == input_id)
        )
        return self.session.scalar(
            select(AuditRow.id)
            .where(AuditRow.project_id == self.project_id, AuditRow.status.in_(LIVE_STATUSES), uses)
            .limit(1)
        )

    def live_refit_of(self, audit_id: str) -> str | None:
        """Id of a refit of this audit that has not ended."""
        return self.session.scalar(
            select(AuditRow.id)
            .where(
                AuditRow.project_id == self.project_id,
                AuditRow.parent_id == audit_id,
                AuditRow.status.in_(LIVE_STATUSES),
            )
            .limit(1)
        )

    def progress(self, row: AuditRow) -> Progress | None:
        """Counts of the audit's present stage over all its units; None before the first and after the end."""
        if row.stage is None or row.status not in LIVE_STATUSES:
            return None
        units, done, total, unit = self.session.execute(
            select(
                func.count(),
                func.coalesce(func.sum(UnitRow.done), 0),
                func.coalesce(func.sum(UnitRow.total), 0),
                func.max(UnitRow.progress_unit),
            ).where(
                UnitRow.project_id == self.project_id,
                UnitRow.audit_id == row.id,
                UnitRow.attempt == row.attempt,
                UnitRow.stage == row.stage,
            )
        ).one()
        if units == 0:
            return None
        if row.stage in FAN_OUT and unit == "documents" and row.n_documents is not None:
            # Shards that no worker has taken yet have no total of their own.
            total = max(row.n_documents, done)
        return Progress(done=int(done), total=int(total), unit=unit)


class Events(Repository[EventRow]):
    row = EventRow

    def after(self, audit_id: str, sequence: int, limit: int) -> Sequence[EventRow]:
        """Events of an audit whose sequence is above `sequence`, oldest first."""
        return self.session.scalars(
            select(EventRow)
            .where(
                EventRow.project_id == self.project_id,
                EventRow.audit_id == audit_id,
                EventRow.sequence > sequence,
            )
            .order_by(EventRow.sequence)
            .limit(limit)
        ).all()


class APIKeys(Repository[APIKeyRow]):
    row = APIKeyRow

    def lock_live(self) -> Sequence[APIKeyRow]:
        """The keys that are not revoked, locked, so that two revocations cannot take the last one."""
        return self.session.scalars(
            select(APIKeyRow)
            .where(APIKeyRow.project_id == self.project_id, APIKeyRow.revoked_at.is_(None))
            .order_by(APIKeyRow.id)
            .with_for_update()
        ).all()

    def count(self) -> int:
        """Keys of the project, revoked ones included."""
        query = select(func.count()).select_from(APIKeyRow).where(APIKeyRow.project_id == self.project_id)
        return self.session.scalar(query) or 0


class IdempotencyKeys(Repository[IdempotencyRow]):
    row = IdempotencyRow

    def find(self, route: str, key: str) -> IdempotencyRow | None:
        """The record of a key on a route."""
        return self.session.scalar(
            select(IdempotencyRow)
            .where(
                IdempotencyRow.project_id == self.project_id,
                IdempotencyRow.route == route,
                IdempotencyRow.key == key,
            )
            .with_for_update()
        )

    def remove_older(self, cutoff: datetime) -> None:
        """Forget every record made before `cutoff`."""
        self.session.execute(
            delete(IdempotencyRow).where(
                IdempotencyRow.project_id == self.project_id, IdempotencyRow.created_at < cutoff
            )
        )


class Repositories:
    """Every repository of one project in one session."""

    def __init__(self, session: Session, project_id: str) -> None:
        self.session = session
        self.project_id = project_id
        self.uploads = Uploads(session, project_id)
        self.models = Models(session, project_id)
        self.adapters = Adapters(session, project_id)
        self.datasets = Datasets(session, project_id)
        self.audits = Audits(session, project_id)
        self.events = Events(session, project_id)
        self.jobs = Jobs(session, project_id)
        self.steered_adapters = SteeredAdapters(session, project_id)
        self.api_keys = APIKeys(session, project_id)
        self.idempotency_keys = IdempotencyKeys(session, project_id)
        self.deletions = Deletions(session, project_id)
