"""`atomscope control`: consumes the `control` queue and makes the rounds; owns the record."""

from __future__ import annotations

import logging
import sys
from datetime import timedelta
from typing import Any

from celery import Celery
from sqlalchemy.exc import DBAPIError

from atomscope.store import StoreError, open_store
from atomscope.types.jobs import JOB_REPORT_TASK
from atomscope.types.work import CONTROL_QUEUE, REPORT_TASK
from atomscope_service.control.broker import Broker, BrokerUnavailable
from atomscope_service.control.celery import (
    AUDIT_CREATED_TASK,
    CANCEL_TASK,
    DELETIONS_TASK,
    HUB_IMPORT_TASK,
    JOB_ADDED_TASK,
    make_app,
)
from atomscope_service.control.deletions import forget_idempotency, remove_deleted
from atomscope_service.control.expiry import expire_gradients
from atomscope_service.control.hub import import_models
from atomscope_service.control.job_scheduler import JobScheduler
from atomscope_service.control.reports import handle_report
from atomscope_service.control.rounds import Round
from atomscope_service.control.scheduler import Scheduler
from atomscope_service.control.sweeper import sweep
from atomscope_service.db.engine import Database
from atomscope_service.settings import Settings
from atomscope_service.uploads.expiry import expire_uploads

logger = logging.getLogger(__name__)

PASSING = (DBAPIError, StoreError, BrokerUnavailable, OSError)
"""Faults of what control stands on: a message that met one is taken again."""
RETRY_SECONDS = 1.0
STOP_SECONDS = 10.0
HUB_SECONDS = 60.0


def run(settings: Settings) -> int:
    """Consume until SIGTERM; the exit status."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    database = Database(settings.database_url)
    store, broker = open_store(settings.store), Broker(settings.broker_url)
    scheduler = Scheduler(database, store, broker, settings)
    # Each in a thread of its own: a large deletion or import must not hold up the leases.
    jobs = JobScheduler(scheduler)
    leases = Round("sweep", settings.sweep_seconds, lambda: _sweep(scheduler, jobs))
    cleaning = Round("cleaning", settings.sweep_seconds, lambda: _clean(scheduler))
    imports = Round("import", HUB_SECONDS, lambda: import_models(database, store, broker, settings))
    app = make_app(settings.broker_url, settings.lease_seconds)
    add_tasks(app, scheduler, jobs, cleaning, imports)
    rounds = (leases, cleaning, imports)
    for each in rounds:
        each.start()
    try:
        app.worker_main(
            [
                "--quiet",
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
        for each in rounds:
            each.stop(STOP_SECONDS)
        broker.close()
        database.dispose()
    return 0


def add_tasks(app: Celery, scheduler: Scheduler, jobs: JobScheduler, cleaning: Round, imports: Round) -> None:
    """Give the application the tasks of the `control` queue: short ones, the rest is left to the rounds."""
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

    @app.task(name=JOB_ADDED_TASK, **again)
    def job_added(project_id: str, job_id: str) -> None:  # pyright: ignore[reportUnusedFunction]
        jobs.start(project_id, job_id)

    @app.task(name=JOB_REPORT_TASK, **again)
    def job_report(message: dict[str, Any]) -> None:  # pyright: ignore[reportUnusedFunction]
        jobs.report(message)

    @app.task(name=DELETIONS_TASK)
    def deletions() -> None:  # pyright: ignore[reportUnusedFunction]
        cleaning.wake()

    @app.task(name=HUB_IMPORT_TASK)
    def hub_import(_project_id: str, _model_id: str) -> None:  # pyright: ignore[reportUnusedFunction]
        imports.wake()


def _sweep(scheduler: Scheduler, jobs: JobScheduler) -> None:
    sweep(scheduler)
    jobs.sweep()


def _clean(scheduler: Scheduler) -> None:
    database, settings = scheduler.database, scheduler.settings
    expire_uploads(database, scheduler.store)
    expire_gradients(database, settings.gradient_days)
    forget_idempotency(database, timedelta(seconds=settings.idempotency_seconds))
    remove_deleted(database, scheduler.store, 2 * timedelta(seconds=settings.lease_seconds))
