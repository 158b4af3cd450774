"""Jobs on finished audits: runs an order over the object store, and leaves its result there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from atomscope.bundle import Bundle
from atomscope.errors import BundleError, InvalidInput
from atomscope.store import ObjectStore
from atomscope.types.attribution import AttributionQuery
from atomscope.types.evaluation import EvaluationQuery
from atomscope.types.jobs import JobAbandoned, JobFailed, JobOrder, JobStarted, JobSucceeded
from atomscope_workers.attribution import attribute
from atomscope_workers.evaluation import evaluate
from atomscope_workers.failures import failure
from atomscope_workers.fetched_inputs import fetched_input
from atomscope_workers.held_folders import process_folder
from atomscope_workers.opened_audit import FinishedAudit
from atomscope_workers.pulse import UNREACHED, Pulse
from atomscope_workers.stages.context import Stopped

logger = logging.getLogger(__name__)

_Query = TypeVar("_Query", AttributionQuery, EvaluationQuery)

_opened: list[tuple[ObjectStore, str, Bundle]] = []
"""The bundle this process used last, with the files that it fetched: queries come in rows."""


class StoredAudit(FinishedAudit):
    """The `AuditFiles` of an audit of the service, its base model in the object store."""

    def __init__(self, store: ObjectStore, order: JobOrder, pulse: Pulse) -> None:
        super().__init__(_bundle(store, order.bundle_prefix))
        self._store = store
        self._pulse = pulse

    def base(self) -> Path:
        return fetched_input(self._store, self.spec.base_model)

    def progress(self, done: int, total: int, unit: str) -> None:
        self._pulse.progress(done, total, unit)

    def checkpoint(self) -> None:
        self._pulse.checkpoint()


def run_job_order(store: ObjectStore, order: JobOrder, pulse: Pulse) -> None:
    """Do one job and report how it ended."""
    kind, facts = JobFailed, dict[str, Any]()
    try:
        pulse.send(JobStarted)
    except UNREACHED as error:  # the first heartbeat will say the same
        logger.warning("the start of %s was not told: %s", order.job_id, error)
    pulse.start()
    try:
        pulse.checkpoint()
        result = _WORK[order.kind](StoredAudit(store, order, pulse), order)
        pulse.checkpoint()
        store.put_bytes(order.result_key, msgspec.json.encode(result))
        kind = JobSucceeded
    except Stopped as stop:
        logger.info("%s stopped: %s", order.job_id, stop)
        kind = JobAbandoned
    except InvalidInput as error:
        facts = failure(error)
    except BundleError as error:  # another attempt would find the bundle no better
        facts = failure(InvalidInput("bundle_damaged", f"the audit's bundle cannot be read: {error}"))
    except Exception as error:  # whatever a hostile input provokes must reach the record of the job
        logger.exception("%s failed", order.job_id)
        facts = failure(error)
    finally:
        pulse.stop()
    pulse.insist(kind, **facts)


def _attribution(files: StoredAudit, order: JobOrder) -> object:
    return attribute(files, _query(order, AttributionQuery))


def _evaluation(files: StoredAudit, order: JobOrder) -> object:
    return evaluate(files, _query(order, EvaluationQuery))


_WORK: dict[str, Callable[[StoredAudit, JobOrder], object]] = {
    "attribution": _attribution,
    "evaluation": _evaluation,
}


def _query(order: JobOrder, kind: type[_Query]) -> _Query:
    try:
        return msgspec.convert(order.request, kind)
    except msgspec.ValidationError as error:
        raise InvalidInput("bad_request", f"the query cannot be read: {error}") from error


def _bundle(store: ObjectStore, prefix: str) -> Bundle:
    for of, name, bundle in _opened:
        if of is store and name == prefix:
            return bundle
    _opened.clear()
    _opened.append((store, prefix, Bundle(store, prefix, process_folder())))
    return _opened[0][2]
