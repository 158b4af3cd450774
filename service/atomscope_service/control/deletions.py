"""Removing from the store what the record no longer names, and from the record what has expired."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, select

from atomscope.store import ObjectStore, StoreError
from atomscope_service.db.engine import Database
from atomscope_service.db.models import DeletionRow, IdempotencyRow

logger = logging.getLogger(__name__)

BATCH = 100
_OF_A_WORKER = re.compile(
    r"projects/[^/]+/(audits/[^/]+/(a\d+|bundle-a\d+-f\d+|jobs/[^/]+)|extractions/[^/]+)/"
)


def remove_deleted(database: Database, store: ObjectStore, grace: timedelta) -> int:
    """Remove the objects of the waiting deletions; how many deletions were done.

    What an attempt or a job left is given `grace` first: a worker that has not yet noticed that it ended, or
    was deleted, may still be writing there. A deletion that the store refuses stays recorded and is tried
    again; it does not hold up the others.
    """
    done = 0
    last = ""
    while True:
        with database.read() as session:
            rows = session.scalars(
                select(DeletionRow).where(DeletionRow.id > last).order_by(DeletionRow.id).limit(BATCH)
            ).all()
        for row in rows:
            last = row.id
            if _OF_A_WORKER.fullmatch(row.prefix) and row.created_at + grace > datetime.now(UTC):
                continue
            try:
                _remove(store, row.prefix)
            except StoreError as error:
                logger.warning("%s could not be removed: %s", row.prefix, error)
                continue
            with database.write() as session:
                session.execute(delete(DeletionRow).where(DeletionRow.id == row.id))
            done += 1
        if len(rows) < BATCH:
            return done


def forget_idempotency(database: Database, age: timedelta) -> int:
    """Forget the answers to `Idempotency-Key`s that are older than `age`, of every project; how many."""
    with database.write() as session:
        old = delete(IdempotencyRow).where(IdempotencyRow.created_at < datetime.now(UTC) - age)
        return len(session.scalars(old.returning(IdempotencyRow.id)).all())


def _remove(store: ObjectStore, prefix: str) -> None:
    if prefix.endswith("/"):
        store.delete_prefix(prefix)
    else:
        store.delete(prefix)
