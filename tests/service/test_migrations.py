"""The migrations make exactly the tables of the models, on both databases, and can be undone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect

from atomscope_service.db.engine import Database
from atomscope_service.db.migrate import downgrade, is_current, upgrade
from atomscope_service.db.models import Base


@pytest.fixture(params=["sqlite", "postgres"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = (
        f"sqlite:///{tmp_path / 'empty.db'}"
        if request.param == "sqlite"
        else request.getfixturevalue("postgres_url")
    )
    database = Database(url)
    yield database
    database.dispose()


def test_upgrading_an_empty_database_gives_the_models_tables(empty: Database) -> None:
    assert not is_current(empty.engine)
    upgrade(empty.engine)
    assert is_current(empty.engine)
    with empty.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_upgrading_twice_changes_nothing(empty: Database) -> None:
    upgrade(empty.engine)
    upgrade(empty.engine)
    assert is_current(empty.engine)


def test_downgrading_leaves_no_table_and_upgrading_again_works(empty: Database) -> None:
    upgrade(empty.engine)
    downgrade(empty.engine, "base")
    assert set(inspect(empty.engine).get_table_names()) == {"alembic_version"}
    upgrade(empty.engine)
    assert is_current(empty.engine)


def test_every_table_but_the_projects_own_has_a_project() -> None:
    for name, table in Base.metadata.tables.items():
        if name != "projects":
            assert not table.c.project_id.nullable
            assert {key.target_fullname for key in table.c.project_id.foreign_keys} == {"projects.id"}
