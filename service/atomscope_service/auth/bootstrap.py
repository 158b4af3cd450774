"""The operator's way to a key: none is needed to make one, only the installation itself."""

from __future__ import annotations

from pathlib import Path

from atomscope.errors import InvalidInput
from atomscope_service.auth.keys import create_key
from atomscope_service.auth.secret import load_secret, write_private_file
from atomscope_service.db.engine import Database
from atomscope_service.db.projects import create_project, find_project
from atomscope_service.db.repositories import Repositories
from atomscope_service.settings import Settings


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
