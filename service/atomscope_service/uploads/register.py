"""Registering a base model from a folder of the operator's machine."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import select

from atomscope.errors import InvalidInput
from atomscope.input_files import file_digest, folder_digest
from atomscope.store import ObjectStore, open_store
from atomscope_service.api.models import model_prefix
from atomscope_service.api.problems import ProblemError
from atomscope_service.db.engine import Database
from atomscope_service.db.models import ModelRow
from atomscope_service.db.projects import find_project
from atomscope_service.db.repositories import Repositories
from atomscope_service.ids import new_id
from atomscope_service.settings import Settings
from atomscope_service.uploads.inspect import inspect_model
from atomscope_service.uploads.rules import IGNORED, check_name, check_set


def register_model(settings: Settings, project: str, name: str, folder: Path) -> ModelRow:
    """Copy a model's files into the store and record it; the same content under the same name is kept once.

    `project` is an id or a name. Files that a model has no use for are left out, subfolders too. Raises
    `InvalidInput` when the project is unknown or the folder is not a safetensors model.
    """
    database, store = Database(settings.database_url), open_store(settings.store)
    try:
        return _register(database, store, project, name, folder)
    except ProblemError as error:
        raise InvalidInput(error.code, error.detail) from error
    finally:
        database.dispose()


def _register(database: Database, store: ObjectStore, project: str, name: str, folder: Path) -> ModelRow:
    if not folder.is_dir():
        raise InvalidInput("no_such_folder", f"no such folder: {folder}")
    with database.read() as session:
        owner = find_project(session, project)
    if owner is None:
        raise InvalidInput("no_such_project", f"no such project: {project}")
    names = _model_files(folder)
    sizes = {file: (folder / file).stat().st_size for file in names}
    architecture = inspect_model(lambda file: (folder / file).open("rb"), sizes)
    sha256 = folder_digest({file: file_digest(folder / file) for file in names})
    with database.read() as session:
        query = select(ModelRow).where(
            ModelRow.project_id == owner.id,
            ModelRow.sha256 == sha256,
            ModelRow.name == name,
            ModelRow.status == "ready",
        )
        known = session.scalar(query.limit(1))
    if known is not None:
        return known
    model_id = new_id("mdl")
    prefix = model_prefix(owner.id, model_id)
    for file in names:
        store.put_file(f"{prefix}{file}", folder / file)
    row = ModelRow(
        id=model_id,
        project_id=owner.id,
        created_at=datetime.now(UTC),
        name=name,
        source="registered",
        status="ready",
        prefix=prefix,
        sha256=sha256,
        size=sum(sizes.values()),
        architecture=architecture,
    )
    with database.write() as session:
        return Repositories(session, owner.id).models.add(row)


def _model_files(folder: Path) -> list[str]:
    """Names of the files that make up the model; a folder of a hub often holds other formats beside."""
    names: list[str] = []
    for path in sorted(folder.iterdir()):
        try:
            check_name("model", path.name, "folder")
        except ProblemError:
            continue
        if path.is_file() and path.name not in IGNORED:
            names.append(path.name)
    check_set("model", names, "folder")
    return names
