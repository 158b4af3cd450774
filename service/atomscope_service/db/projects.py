"""Projects: the tenants. One, `default`, is made when the service starts."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from atomscope_service.db.models import Project
from atomscope_service.ids import new_id

DEFAULT_PROJECT = "prj_default"


def ensure_default_project(session: Session) -> Project:
    """The project of a fresh installation; made when it is not there. Needs a write session."""
    project = session.get(Project, DEFAULT_PROJECT)
    if project is None:
        project = Project(id=DEFAULT_PROJECT, name="default", created_at=datetime.now(UTC))
        session.add(project)
        session.flush()
    return project


def create_project(session: Session, name: str) -> Project:
    """A new project; raises `sqlalchemy.exc.IntegrityError` when the name is taken."""
    project = Project(id=new_id("prj"), name=name, created_at=datetime.now(UTC))
    session.add(project)
    session.flush()
    return project


def find_project(session: Session, name_or_id: str) -> Project | None:
    """The project of that id or name."""
    return session.get(Project, name_or_id) or session.scalar(
        select(Project).where(Project.name == name_or_id)
    )
