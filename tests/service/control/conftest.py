"""A site of control on SQLite and the session's Valkey."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from atomscope_service.db.engine import Database
from atomscope_service.db.migrate import upgrade
from tests.fixtures.valkey import Valkey
from tests.service.control.site import Site


@pytest.fixture
def site(tmp_path: Path, migrated_sqlite: Path, valkey: Valkey) -> Iterator[Site]:
    shutil.copyfile(migrated_sqlite, tmp_path / "atomscope.db")
    made = Site(tmp_path, f"sqlite:///{tmp_path / 'atomscope.db'}", valkey)
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "postgres"])
def any_site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A site on each of the two databases."""
    if request.param == "sqlite":
        yield request.getfixturevalue("site")
        return
    url = request.getfixturevalue("postgres_url")
    database = Database(url)
    upgrade(database.engine)
    database.dispose()
    made = Site(tmp_path, url, request.getfixturevalue("valkey"))
    yield made
    made.close()
