"""What handlers work with: the parts of the service, and one project's view of them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from litestar import Request
from litestar.di import NamedDependency

from atomscope.store import ObjectStore
from atomscope_service.api.bundles import BundleCache
from atomscope_service.api.problems import not_found, unknown_reference
from atomscope_service.api.queue import WorkQueue
from atomscope_service.auth.keys import Caller
from atomscope_service.auth.secret import Secret
from atomscope_service.db.engine import Database
from atomscope_service.db.models import ProjectRow
from atomscope_service.db.repositories import Repositories, Repository
from atomscope_service.settings import Settings

R = TypeVar("R", bound=ProjectRow)


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of the service, made once when the application starts."""

    settings: Settings
    database: Database
    store: ObjectStore
    queue: WorkQueue
    secret: Secret
    bundles: BundleCache


class Tenant:
    """One project's view of the service: all that a handler of a resource is given.

    Sessions come as `Repositories` of the caller's project, so a handler has no way to another's rows.
    """

    def __init__(self, services: Services, caller: Caller) -> None:
        self.services = services
        self.project_id = caller.project_id
        self.key_id = caller.key_id

    @contextmanager
    def read(self) -> Generator[Repositories]:
        """Repositories in a session that only reads."""
        with self.services.database.read() as session:
            yield Repositories(session, self.project_id)

    @contextmanager
    def write(self) -> Generator[Repositories]:
        """Repositories in a transaction that commits when the block ends."""
        with self.services.database.write() as session:
            yield Repositories(session, self.project_id)


def found(repository: Repository[R], row_id: str, what: str, *, lock: bool = False) -> R:
    """The row that a path names; raises 404."""
    row = repository.get(row_id, lock=lock) if row_id.isascii() and row_id.isprintable() else None
    if row is None:
        raise not_found(what)
    return row


def referenced(repository: Repository[R], row_id: str, what: str, param: str, *, lock: bool = False) -> R:
    """The row that a field of the body names; raises 422."""
    row = repository.get(row_id, lock=lock)
    if row is None:
        raise unknown_reference(param, what)
    return row


CurrentServices = NamedDependency[Services]
"""Argument of a handler that needs no key."""

CurrentTenant = NamedDependency[Tenant]
"""Argument of a handler that does."""


def provide_services(request: Request[Any, Any, Any]) -> Services:
    """Dependency `services`, for the few routes without a key."""
    return request.app.state.services


def provide_tenant(request: Request[Any, Caller, Any]) -> Tenant:
    """Dependency `tenant`: needs an authenticated request."""
    return Tenant(request.app.state.services, request.auth)
