"""Repositories, events and transactions on SQLite and on PostgreSQL."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from atomscope_service.auth.keys import authenticate, create_key, hash_key, write_first_key
from atomscope_service.auth.secret import Secret
from atomscope_service.db.engine import Database
from atomscope_service.db.events import append_event
from atomscope_service.db.migrate import upgrade
from atomscope_service.db.models import APIKeyRow, AuditRow, EventRow, ModelRow, UnitRow
from atomscope_service.db.projects import create_project, ensure_default_project, find_project
from atomscope_service.db.repositories import Audits, Models, Repositories
from atomscope_service.ids import is_id, new_id

SECRET = Secret(b"x" * 32)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        path = tmp_path / "test.db"
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), path)
        made = Database(f"sqlite:///{path}")
    else:
        made = Database(request.getfixturevalue("postgres_url"))
        upgrade(made.engine)
    yield made
    made.dispose()


@pytest.fixture
def project(database: Database) -> str:
    with database.write() as session:
        return create_project(session, "one").id


@pytest.fixture
def stranger(database: Database) -> str:
    with database.write() as session:
        return create_project(session, "two").id


def model(project_id: str, **columns: Any) -> ModelRow:
    values: dict[str, Any] = {
        "id": new_id("mdl"),
        "created_at": datetime.now(UTC),
        "name": "m",
        "source": "uploaded",
        "status": "ready",
        "prefix": f"projects/{project_id}/models/x/",
        "size": 200 * 2**30,
    }
    return ModelRow(project_id=project_id, **(values | columns))


def audit(project_id: str, **columns: Any) -> AuditRow:
    values: dict[str, Any] = {
        "id": new_id("aud"),
        "created_at": datetime.now(UTC),
        "status": "queued",
        "attempt": 1,
        "base_model_id": "mdl_1",
        "adapter_id": "ada_1",
        "dataset_id": "ds_1",
        "config": {},
        "metadata_": {"team": "ünïcode"},
        "warnings": [],
        "event_sequence": 0,
    }
    return AuditRow(project_id=project_id, **(values | columns))


def unit(row: AuditRow, index: int, **columns: Any) -> UnitRow:
    values: dict[str, Any] = {
        "stage": "extract",
        "state": "leased",
        "fence": 1,
        "sequence": 1,
        "done": 0,
        "total": 0,
        "progress_unit": "documents",
    }
    return UnitRow(
        id=new_id("unt"),
        project_id=row.project_id,
        created_at=datetime.now(UTC),
        audit_id=row.id,
        attempt=1,
        index=index,
        **(values | columns),
    )


def test_a_repository_cannot_be_built_without_a_project(database: Database) -> None:
    with database.read() as session, pytest.raises(ValueError, match="project id"):
        Models(session, "")
    with database.read() as session, pytest.raises(TypeError):
        Models(session)  # pyright: ignore[reportCallIssue]


def test_rows_come_back_as_they_were_written(database: Database, project: str) -> None:
    row = model(project)
    with database.write() as session:
        Models(session, project).add(row)
    with database.read() as session:
        found = Models(session, project).get(row.id)
    assert found is not None
    assert found.size == 200 * 2**30
    assert found.created_at == row.created_at
    assert found.created_at.tzinfo is UTC


def test_a_row_of_another_project_is_neither_read_nor_changed(
    database: Database, project: str, stranger: str
) -> None:
    row = model(project)
    with database.write() as session:
        Models(session, project).add(row)
    with database.write() as session:
        theirs = Models(session, stranger)
        assert theirs.get(row.id) is None
        assert theirs.page(limit=10) == []
        assert not theirs.remove(session.get_one(ModelRow, row.id))
        with pytest.raises(ValueError, match="another project"):
            theirs.add(model(project))
    with database.read() as session:
        assert Models(session, project).get(row.id) is not None


def test_pages_are_newest_first_without_gaps_or_repeats(database: Database, project: str) -> None:
    rows = [model(project, status="ready" if number % 2 else "failed") for number in range(7)]
    with database.write() as session:
        for row in rows:
            Models(session, project).add(row)
    newest = [row.id for row in reversed(rows)]
    with database.read() as session:
        models = Models(session, project)
        first = [row.id for row in models.page(limit=3)]
        second = [row.id for row in models.page(limit=3, before=first[-1])]
        third = [row.id for row in models.page(limit=3, before=second[-1])]
        ready = models.page(limit=10, status="ready")
    assert first + second + third == newest
    assert [row.status for row in ready] == ["ready"] * 3


def test_a_block_that_raises_leaves_nothing(database: Database, project: str) -> None:
    def fail() -> None:
        with database.write() as session:
            Models(session, project).add(model(project))
            raise RuntimeError("after the insert")

    with pytest.raises(RuntimeError):
        fail()
    with database.read() as session:
        assert Models(session, project).page(limit=10) == []


def test_foreign_keys_are_enforced(database: Database, project: str) -> None:
    with pytest.raises(IntegrityError), database.write() as session:
        Models(session, "prj_none").add(model("prj_none"))


def test_deleting_an_audit_takes_its_events_and_units(database: Database, project: str) -> None:
    row = audit(project)
    with database.write() as session:
        Audits(session, project).add(row)
        append_event(session, row, "audit.queued", {})
        session.add(unit(row, 0))
    with database.write() as session:
        audits = Audits(session, project)
        found = audits.get(row.id, lock=True)
        assert found is not None
        assert audits.remove(found)
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(EventRow)) == 0
        assert session.scalar(select(func.count()).select_from(UnitRow)) == 0


def test_of_two_removals_one_is_told_that_it_removed(database: Database, project: str) -> None:
    row = model(project)
    with database.write() as session:
        Models(session, project).add(row)
    with database.write() as session:
        assert Models(session, project).remove(row)
    with database.write() as session:
        assert not Models(session, project).remove(row)


def test_concurrent_events_get_numbers_without_gaps(database: Database, project: str) -> None:
    row = audit(project)
    with database.write() as session:
        Audits(session, project).add(row)
    start = threading.Barrier(4)

    def append(worker: int) -> list[int]:
        start.wait()
        numbers: list[int] = []
        for _ in range(10):
            with database.write() as session:
                own = Audits(session, project).get(row.id)
                assert own is not None
                event = append_event(session, own, "audit.progress", {"worker": worker})
                assert own.event_sequence == event.sequence
                numbers.append(event.sequence)
        return numbers

    with ThreadPoolExecutor(4) as pool:
        numbers = [number for taken in pool.map(append, range(4)) for number in taken]
    assert sorted(numbers) == list(range(1, 41))
    with database.read() as session:
        events = Repositories(session, project).events.after(row.id, 0, 100)
        assert [event.sequence for event in events] == list(range(1, 41))
        assert Repositories(session, project).events.after(row.id, 39, 100)[0].sequence == 40


def test_an_event_is_rolled_back_with_its_number(database: Database, project: str) -> None:
    row = audit(project)
    with database.write() as session:
        Audits(session, project).add(row)

    def fail() -> None:
        with database.write() as session:
            own = Audits(session, project).get(row.id)
            assert own is not None
            append_event(session, own, "audit.running", {})
            raise RuntimeError("after the event")

    with pytest.raises(RuntimeError):
        fail()
    with database.write() as session:
        own = Audits(session, project).get(row.id)
        assert own is not None
        assert append_event(session, own, "audit.running", {}).sequence == 1


def test_who_uses_an_input_counts_live_audits_only(database: Database, project: str, stranger: str) -> None:
    with database.write() as session:
        audits = Audits(session, project)
        live = audits.add(audit(project, status="canceling", adapter_id="ada_live"))
        audits.add(audit(project, status="succeeded", adapter_id="ada_done"))
    with database.read() as session:
        audits = Audits(session, project)
        assert audits.live_user_of("ada_live") == live.id
        assert audits.live_user_of("ada_done") is None
        assert Audits(session, stranger).live_user_of("ada_live") is None


def test_progress_sums_the_units_of_the_stage(database: Database, project: str) -> None:
    row = audit(project, status="running", stage="extract", n_documents=300)
    with database.write() as session:
        audits = Audits(session, project)
        audits.add(row)
        session.add(unit(row, 0, done=100, total=100))
        session.add(unit(row, 1, done=20, total=100))
        session.add(unit(row, 2))  # no worker has taken it: its total is not known yet
        session.add(unit(row, 0, stage="validate", done=1, total=1, progress_unit="steps"))
        session.flush()
        progress = audits.progress(row)
        assert progress is not None
        assert (progress.done, progress.total, progress.unit) == (120, 300, "documents")
        row.status = "succeeded"
        assert audits.progress(row) is None


def test_deletions_stay_within_the_project(database: Database, project: str, stranger: str) -> None:
    with database.write() as session:
        deletions = Repositories(session, project).deletions
        deletions.add_prefix(f"projects/{project}/models/x/")
        with pytest.raises(ValueError, match="not of project"):
            deletions.add_prefix(f"projects/{stranger}/models/x/")
        assert [row.prefix for row in deletions.page(limit=10)] == [f"projects/{project}/models/x/"]


def test_projects_are_found_by_id_and_by_name(database: Database, project: str) -> None:
    with database.write() as session:
        default = ensure_default_project(session)
        assert ensure_default_project(session) is default
        assert find_project(session, "default") is default
        assert find_project(session, default.id) is default
        assert find_project(session, "no such") is None
        with pytest.raises(IntegrityError):
            create_project(session, "one")


# ---------------------------------------------------------------------- keys


def test_only_the_hmac_of_a_key_is_stored(database: Database, project: str) -> None:
    with database.write() as session:
        row, key = create_key(Repositories(session, project), SECRET, "k")
    with database.read() as session:
        stored = session.get_one(APIKeyRow, row.id)
    columns = [str(getattr(stored, column.key)) for column in APIKeyRow.__table__.columns]
    assert not any(key in value or key[4:] in value for value in columns)
    assert stored.hmac == hash_key(SECRET, key)
    assert key.startswith(stored.hint)
    assert len(stored.hint) == 10


def test_a_key_names_its_project_until_it_is_revoked(database: Database, project: str) -> None:
    with database.write() as session:
        row, key = create_key(Repositories(session, project), SECRET, "k")
    caller = authenticate(database, SECRET, key)
    assert caller is not None
    assert (caller.project_id, caller.key_id) == (project, row.id)
    assert authenticate(database, Secret(b"y" * 32), key) is None
    assert authenticate(database, SECRET, key[:-1] + ("A" if key[-1] != "A" else "B")) is None
    with database.write() as session:
        session.get_one(APIKeyRow, row.id).revoked_at = datetime.now(UTC)
    assert authenticate(database, SECRET, key) is None


@pytest.mark.parametrize("key", ["", "ask_", "ask_" + "a" * 42, "ask_" + "a" * 44, "ask_" + "é" * 43, "\0"])
def test_a_malformed_key_is_nobodys(database: Database, key: str) -> None:
    assert authenticate(database, SECRET, key) is None


def test_last_used_is_written_coarsely(database: Database, project: str) -> None:
    with database.write() as session:
        row, key = create_key(Repositories(session, project), SECRET, "k")

    def last_used() -> datetime | None:
        with database.read() as session:
            return session.get_one(APIKeyRow, row.id).last_used_at

    assert last_used() is None
    authenticate(database, SECRET, key)
    first = last_used()
    assert first is not None
    authenticate(database, SECRET, key)
    assert last_used() == first
    with database.write() as session:
        session.get_one(APIKeyRow, row.id).last_used_at = first - timedelta(minutes=6)
    authenticate(database, SECRET, key)
    renewed = last_used()
    assert renewed is not None
    assert renewed >= first


def test_the_first_key_is_written_once_to_a_private_file(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "first-key"
    assert write_first_key(database, SECRET, path)
    assert path.stat().st_mode & 0o777 == 0o600
    caller = authenticate(database, SECRET, path.read_text().strip())
    assert caller is not None
    assert caller.project_id == "prj_default"
    assert not write_first_key(database, SECRET, tmp_path / "second-key")
    assert not (tmp_path / "second-key").exists()


def test_the_first_key_never_overwrites_a_file(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "first-key"
    path.write_text("someone else's")
    with pytest.raises(FileExistsError):
        write_first_key(database, SECRET, path)
    assert path.read_text() == "someone else's"
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(APIKeyRow)) == 0


def test_ids_rise_and_name_their_kind() -> None:
    ids = [new_id("aud") for _ in range(5000)]
    assert ids == sorted(set(ids))
    assert is_id(ids[0], "aud")
    assert not is_id(ids[0], "mdl")
    assert ids[0][4:][12] == "7"


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y"])
def test_databases_that_cannot_serve_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"SQLite needs a file|not a supported database"):
        Database(url)
