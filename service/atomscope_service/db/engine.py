"""The connection to the metadata database: SQLite in a file, or PostgreSQL through psycopg 3."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session, sessionmaker

_WRITES = "atomscope_writes"
SQLITE_BUSY_SECONDS = 30.0
"""How long a SQLite writer waits for another one before it gives up."""


def make_engine(url: str) -> Engine:
    """An engine for `sqlite:///file` or `postgresql+psycopg://...` (`postgresql://` means the same).

    SQLite runs in WAL mode with foreign keys on. Its transactions are begun by us, not by the driver:
    one that will write takes the write lock at once (`BEGIN IMMEDIATE`), since a read transaction that
    is upgraded fails without waiting when another writer came in between.

    Raises `ValueError` for another database and for SQLite in memory, which threads cannot share.
    """
    parsed = make_url(url)
    if parsed.drivername in {"postgresql", "postgresql+psycopg"}:
        return create_engine(parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite"}:
        raise ValueError(f"not a supported database: {parsed.drivername!r} (sqlite or postgresql)")
    if not parsed.database or parsed.database == ":memory:":
        raise ValueError("SQLite needs a file, such as sqlite:////var/lib/atomscope/atomscope.db")
    engine = create_engine(parsed, connect_args={"timeout": SQLITE_BUSY_SECONDS, "check_same_thread": False})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: sqlite3.Connection, _record: Any) -> None:  # noqa: ANN401
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


class Database:
    """Short transactions on one engine; safe to share among threads.

    Rows read in a session stay readable after it ended (`expire_on_commit` is off); nothing is loaded
    lazily.
    """

    def __init__(self, url: str) -> None:
        self.engine = make_engine(url)
        self._read = sessionmaker(self.engine, expire_on_commit=False, autoflush=True)
        self._write = sessionmaker(
            self.engine.execution_options(**{_WRITES: True}), expire_on_commit=False, autoflush=True
        )

    @contextmanager
    def read(self) -> Generator[Session]:
        """A session that only reads; whatever it changed is rolled back."""
        with self._read() as session:
            yield session

    @contextmanager
    def write(self) -> Generator[Session]:
        """A session that commits when the block ends and rolls back when it raises."""
        with self._write.begin() as session:
            yield session

    def dispose(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()
