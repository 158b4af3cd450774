"""`/livez` and `/readyz`, without a key."""

from __future__ import annotations

import logging
from collections.abc import Callable

from litestar import Controller, Response, get
from sqlalchemy.exc import SQLAlchemyError

from atomscope import __version__
from atomscope.errors import AtomscopeError
from atomscope.types.resources import Health
from atomscope_service.api.services import CurrentServices, Services
from atomscope_service.auth.middleware import PUBLIC
from atomscope_service.db.migrate import is_current

logger = logging.getLogger(__name__)

PROBE_KEY = "readyz"
"""A key that is looked for in the store; that it is missing is an answer, too."""


class HealthController(Controller):
    tags = ["health"]  # noqa: RUF012
    opt = {PUBLIC: True}  # noqa: RUF012
    security = []  # noqa: RUF012

    @get("/livez", operation_id="getLiveness", sync_to_thread=False)
    def live(self) -> Health:
        """The process answers."""
        return Health(status="ok", version=__version__, checks={})

    @get("/readyz", operation_id="getReadiness", sync_to_thread=True)
    def ready(self, services: CurrentServices) -> Response[Health]:
        """Database, broker and store answer; 503 when one does not."""
        checks = {
            "database": _check("database", lambda: _database(services)),
            "broker": _check("broker", services.queue.ping),
            "store": _check("store", lambda: _store(services)),
        }
        healthy = all(outcome == "ok" for outcome in checks.values())
        health = Health(status="ok" if healthy else "degraded", version=__version__, checks=checks)
        return Response(health, status_code=200 if healthy else 503, headers={"Cache-Control": "no-store"})


def _database(services: Services) -> None:
    if not is_current(services.database.engine):
        raise AtomscopeError("its tables are not those of this version: run the migrations")


def _store(services: Services) -> None:
    services.store.exists(PROBE_KEY)


def _check(name: str, probe: Callable[[], None]) -> str:
    """`ok`, or the kind of failure; details go to the log, not to whoever asks without a key."""
    try:
        probe()
    except (AtomscopeError, SQLAlchemyError, OSError) as error:
        logger.warning("%s is not ready: %s", name, error)
        return "failed"
    return "ok"
