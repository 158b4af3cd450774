"""What an operator does on the installation itself, without the API: base models and first keys."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from atomscope.errors import InvalidInput
from atomscope.store import open_store
from atomscope.types.resources import Model
from atomscope_service.api.models import model_prefix, render_model
from atomscope_service.api.problems import ProblemError
from atomscope_service.auth.keys import create_key
from atomscope_service.auth.secret import load_secret, write_private_file
from atomscope_service.db.engine import Database
from atomscope_service.db.models import ModelRow
from atomscope_service.db.projects import create_project, find_project
from atomscope_service.db.repositories import Repositories
from atomscope_service.ids import new_id
from atomscope_service.settings import Settings
from atomscope_service.uploads.digest import folder_digest
from atomscope_service.uploads.inspect import inspect_model
from atomscope_service.uploads.rules import MODEL_FILES, check_set


def register_model(settings: Settings, project: str, name: str, folder: Path) -> Model:
    """Copy a base model's folder into the store and record it.

    Only the files that a model needs are taken. Raises `InvalidInput` when the folder holds no model of
    safetensors, or there is no such project.
    """
    if not folder.is_dir():
        raise InvalidInput("bad_path", f"no such folder: {folder}")
    files = {
        file.name: file
        for file in sorted(folder.iterdir())
        if file.is_file()
        and (file.name in MODEL_FILES or file.name.endswith((".safetensors", ".safetensors.index.json")))
    }
    sizes = {file_name: file.stat().st_size for file_name, file in files.items()}
    try:
        check_set("model", list(files), "path")
        architecture = inspect_model(lambda file_name: files[file_name].open("rb"), sizes)
    except ProblemError as error:
        raise InvalidInput(error.code, f"{folder}: {error.detail}") from error
    model_id = new_id("mdl")
    database = Database(settings.database_url)
    project_id = _project_id(database, project)
    prefix = model_prefix(project_id, model_id)
    store = open_store(settings.store)
    digests: dict[str, str] = {}
    for file_name, file in files.items():
        with file.open("rb") as source:
            digests[file_name] = hashlib.file_digest(source, "sha256").hexdigest()
        store.put_file(f"{prefix}{file_name}", file)
    row = ModelRow(
        id=model_id,
        project_id=project_id,
        created_at=datetime.now(UTC),
        name=name,
        source="registered",
        status="ready",
        prefix=prefix,
        sha256=folder_digest(digests),
        size=sum(sizes.values()),
        architecture=architecture,
    )
    with database.write() as session:
        Repositories(session, project_id).models.add(row)
    database.dispose()
    return render_model(row)


def bootstrap_key(settings: Settings, project: str, name: str, out: Path, *, create: bool) -> str:
    """Write a new API key of a project to a new file of mode 0600; the project's id.

    Raises `InvalidInput` when there is no such project and `create` is off, and `FileExistsError`.
    """
    secret = load_secret(settings.secret_file)
    database = Database(settings.database_url)
    with database.write() as session:
        found = find_project(session, project)
        if found is None and not create:
            raise InvalidInput("no_such_project", f"there is no project {project!r}: use --create-project")
        found = found or create_project(session, project)
        _, key = create_key(Repositories(session, found.id), secret, name)
        write_private_file(out, key.encode() + b"\n")
        project_id = found.id
    database.dispose()
    return project_id


def _project_id(database: Database, project: str) -> str:
    with database.read() as session:
        found = find_project(session, project)
    if found is None:
        raise InvalidInput("no_such_project", f"there is no project {project!r}")
    return found.id
