"""The service under test: one for the session, a new project for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from litestar.testing import TestClient

from atomscope_service.db.engine import Database
from atomscope_service.db.migrate import upgrade
from tests.service.deployment import BASE_URL, Deployment, Tenant


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file at the newest migration, to be copied."""
    path = tmp_path_factory.mktemp("template") / "template.db"
    database = Database(f"sqlite:///{path}")
    upgrade(database.engine)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.dispose()
    return path


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("service"), migrated_sqlite)
    yield made
    made.database.dispose()


@pytest.fixture(scope="session")
def client(deployment: Deployment) -> Iterator[TestClient]:
    """The service without a key."""
    with TestClient(deployment.app, base_url=BASE_URL) as http:
        yield http


@pytest.fixture
def tenant(deployment: Deployment, client: TestClient) -> Tenant:
    return Tenant(deployment, client)


@pytest.fixture
def other(deployment: Deployment, client: TestClient) -> Tenant:
    """Another project of the same service."""
    return Tenant(deployment, client)
