"""`atomscope control`: consumes the `control` queue and sweeps; owns the record."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

from celery import Celery
from sqlalchemy.exc import DBAPIError

from atomscope.errors import AtomscopeError
from atomscope.store import StoreError, open_store
from atomscope.types.work import CONTROL_QUEUE, REPORT_TASK
from atomscope_service.control.broker import Broker, BrokerUnavailable
from atomscope_service.control.celery import AUDIT_CREATED_TASK, CANCEL_TASK, DELETIONS_TASK, make_app
from atomscope_service.control.deletions import remove_deleted
from atomscope_service.control.reports import handle_report
from atomscope_service.control.scheduler import Scheduler
from atomscope_service.control.sweeper import sweep
from atomscope_service.db.engine import Database
from atomscope_service.settings import Settings
from atomscope_service.uploads.expiry import expire_uploads

logger = logging.getLogger(__name__)

PASSING = (DBAPIError, StoreError, BrokerUnavailable, OSError)
"""Faults of what control stands on: a message that met one is taken again."""
RETRY_SECONDS = 1.0


def run(settings: Settings) -> int:
    """Consume until SIGTERM; the exit status."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    database = Database(settings.database_url)
    scheduler = Scheduler(database, open_store(settings.store), Broker(settings.broker_url), settings)
    app = make_app(settings.broker_url, settings.lease_seconds)
    add_tasks(app, scheduler)
    ended = threading.Event()
    sweeper = threading.Thread(
        target=_sweep_on, args=(scheduler, settings.sweep_seconds, ended), name="sweeper", daemon=True
    )
    sweeper.start()
    try:
        app.worker_main(
            [
                "worker",
                "--pool=solo",
                "--loglevel=INFO",
                f"--queues={CONTROL_QUEUE}",
                "--without-mingle",
                "--without-gossip",
                "--without-heartbeat",
            ]
        )
    finally:
        ended.set()
        sweeper.join()
        database.dispose()
    return 0


def add_tasks(app: Celery, scheduler: Scheduler) -> None:
    """Give the application the tasks of the `control` queue."""
    again: dict[str, Any] = {
        "autoretry_for": PASSING,
        "max_retries": None,
        "default_retry_delay": RETRY_SECONDS,
    }

    @app.task(name=REPORT_TASK, **again)
    def report(message: dict[str, Any]) -> None:  # pyright: ignore[reportUnusedFunction]
        handle_report(scheduler, message)

    @app.task(name=AUDIT_CREATED_TASK, **again)
    def audit_created(project_id: str, audit_id: str) -> None:  # pyright: ignore[reportUnusedFunction]
        scheduler.start(project_id, audit_id)

    @app.task(name=CANCEL_TASK, **again)
    def cancel(project_id: str, audit_id: str) -> None:  # pyright: ignore[reportUnusedFunction]
        scheduler.cancel(project_id, audit_id)

    @app.task(name=DELETIONS_TASK, **again)
    def deletions() -> None:  # pyright: ignore[reportUnusedFunction]
        remove_deleted(scheduler.database, scheduler.store)


def _sweep_on(scheduler: Scheduler, seconds: float, ended: threading.Event) -> None:
    while not ended.wait(seconds):
        try:
            sweep(scheduler)
            expire_uploads(scheduler.database, scheduler.store)
            remove_deleted(scheduler.database, scheduler.store)
        except (*PASSING, AtomscopeError) as error:
            logger.warning("a sweep was cut short: %s", error)
