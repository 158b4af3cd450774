"""Removing from the store what the record no longer names."""

from __future__ import annotations

from sqlalchemy import delete, select

from atomscope.store import ObjectStore
from atomscope_service.db.engine import Database
from atomscope_service.db.models import DeletionRow

BATCH = 100


def remove_deleted(database: Database, store: ObjectStore) -> int:
    """Remove the objects of every waiting deletion; how many deletions were done.

    Raises `StoreError`; what was not removed stays recorded and is tried again.
    """
    with database.read() as session:
        rows = session.scalars(select(DeletionRow).order_by(DeletionRow.id).limit(BATCH)).all()
    for row in rows:
        if row.prefix.endswith("/"):
            store.delete_prefix(row.prefix)
        else:
            store.delete(row.prefix)
        with database.write() as session:
            session.execute(delete(DeletionRow).where(DeletionRow.id == row.id))
    return len(rows)
