"""Uses of extractions are counted: what somebody uses stays, what nobody uses goes, whoever comes between."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from atomscope_service.db import extractions
from atomscope_service.db.engine import Database
from atomscope_service.db.migrate import upgrade
from atomscope_service.db.models import AuditRow, DeletionRow, Project
from atomscope_service.ids import new_id

BASE, ADAPTER = "b" * 64, "a" * 64
PROJECTS = ("prj_1", "prj_2")


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    sqlite = f"sqlite:///{tmp_path / 'uses.db'}"
    made = Database(sqlite if request.param == "sqlite" else request.getfixturevalue("postgres_url"))
    upgrade(made.engine)
    with made.write() as session:
        for project in PROJECTS:
            session.add(Project(id=project, name=project, created_at=datetime.now(UTC)))
    yield made
    made.dispose()


def audit(session: Session, project: str = "prj_1") -> AuditRow:
    row = AuditRow(
        id=new_id("aud"), project_id=project, created_at=datetime.now(UTC), status="queued", attempt=1,
        base_model_id="mdl_1", adapter_id="ada_1", dataset_id="ds_1", config={}, metadata_={}, warnings=[],
        event_sequence=0,
    )  # fmt: skip
    session.add(row)
    session.flush()
    return row


def start(database: Database, project: str = "prj_1", base: str = BASE) -> tuple[str, list[str]]:
    """A new audit, and the extractions it may use."""
    with database.write() as session:
        row = audit(session, project)
        return row.id, extractions.claim(session, row, base, ADAPTER)


def delete(database: Database, audit_id: str) -> None:
    with database.write() as session:
        extractions.release(session, "prj_1", audit_id)
        session.delete(session.get(AuditRow, audit_id))


def removed(database: Database) -> list[str]:
    """Ids of the extractions that are put down for deletion."""
    with database.read() as session:
        return sorted(prefix.split("/")[3] for prefix in session.scalars(select(DeletionRow.prefix)))


def test_an_audit_may_use_its_own_and_those_of_equal_inputs_of_its_project(database: Database) -> None:
    first, mine = start(database)
    assert mine == [first]
    start(database, base="c" * 64)
    start(database, project="prj_2")
    second, both = start(database)
    assert both == [second, first]
    with database.write() as session:  # asked again, as after a lost message
        row = session.get(AuditRow, second)
        assert row is not None
        assert set(extractions.claim(session, row, BASE, ADAPTER)) == set(both)


def test_of_many_steps_of_growth_the_first_extraction_and_the_latest_are_looked_through(
    database: Database,
) -> None:
    made = [start(database)[0] for _ in range(extractions.MOST + 5)]
    _, found = start(database)
    assert len(found) == 1 + extractions.MOST
    assert {made[0], *made[-extractions.MOST // 2 :]} <= set(found)


def test_what_is_not_used_is_let_go_and_what_nobody_uses_is_removed(database: Database) -> None:
    first, _ = start(database)
    second, _ = start(database)
    with database.write() as session:
        extractions.keep(session, "prj_1", second, ["", first])
    delete(database, first)
    assert removed(database) == []
    third, both = start(database)
    assert set(both) == {third, second, first}  # the maker is gone, its shards are not
    with database.write() as session:
        extractions.keep(session, "prj_1", third, [first])
    assert removed(database) == [third]
    delete(database, second)
    assert removed(database) == sorted([third, second])
    delete(database, third)
    assert removed(database) == sorted([third, second, first])


def test_a_refit_uses_what_its_parent_does(database: Database) -> None:
    first, _ = start(database)
    with database.write() as session:
        parent = session.get(AuditRow, first)
        assert parent is not None
        child = audit(session)
        assert extractions.inherit(session, parent, child) == 1
        child_id = child.id
    delete(database, first)
    assert removed(database) == []
    delete(database, child_id)
    assert removed(database) == [first]


@pytest.mark.parametrize("claim_first", [True, False])
def test_a_claim_and_the_last_release_at_once_leave_no_use_of_what_is_removed(
    database: Database, claim_first: bool
) -> None:
    first, _ = start(database)
    entered, found = threading.Event(), list[list[str]]()

    def claim() -> None:
        with database.write() as session:
            row = audit(session)
            found.append(extractions.claim(session, row, BASE, ADAPTER))
            entered.set()
            time.sleep(0.2)

    def release() -> None:
        with database.write() as session:
            extractions.release(session, "prj_1", first)
            entered.set()
            time.sleep(0.2)

    one, other = (claim, release) if claim_first else (release, claim)
    thread = threading.Thread(target=one)
    thread.start()
    entered.wait()
    other()
    thread.join()
    assert (first in found[0]) == claim_first
    assert removed(database) == ([] if claim_first else [first])
