"""Asking for work on a finished audit, and waiting for the worker that does it."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from atomscope.client._progress import NoDisplay, ProgressDisplay
from atomscope.client._references import segment
from atomscope.client._service import Service
from atomscope.client._wire import Request, parse
from atomscope.errors import (
    APIConnectionError,
    APIError,
    AttributionFailed,
    EvaluationFailed,
    InternalServerError,
    JobFailed,
    WaitTimeout,
)
from atomscope.types.resources import Attribution, Evaluation

Job = TypeVar("Job", Attribution, Evaluation)

FIRST_PAUSE = 0.2
_GROWTH = 1.5
_MAX_FAILURES = 10
"""Looks in a row that fail before waiting gives up: more than a minute, a restart of the service."""

OnLook = Callable[[Job], Awaitable[None] | None]


@dataclass(frozen=True)
class Jobs(Generic[Job]):
    """The jobs of one kind."""

    kind: type[Job]
    name: str
    failed: type[JobFailed]
    longest_pause: float
    """Seconds between two looks, once it takes long."""

    async def ask(self, service: Service, audit_id: str, query: msgspec.Struct) -> Job:
        """A new job, just queued."""
        return parse(await service.send(Request("POST", self._path(audit_id), body=query)), self.kind)

    async def get(self, service: Service, audit_id: str, job_id: str) -> Job:
        request = Request("GET", f"{self._path(audit_id)}/{segment(job_id)}")
        return parse(await service.send(request), self.kind)

    async def finish(
        self,
        service: Service,
        job: Job,
        timeout: float | None,
        *,
        bars: ProgressDisplay | None = None,
        on_look: OnLook[Job] | None = None,
    ) -> Job:
        """The job once it has succeeded, with its result; through short absences of the service.

        Raises `JobFailed`, and `WaitTimeout` (it goes on).
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        bars = bars or NoDisplay()
        pause = FIRST_PAUSE
        try:
            while True:
                told = None if on_look is None else on_look(job)
                if inspect.isawaitable(told):
                    await told
                if job.status in ("succeeded", "failed"):
                    return self._settled(job)
                if job.progress is not None:
                    bars.update(self.name, job.progress.done, job.progress.total, job.progress.unit)
                if deadline is not None and time.monotonic() + pause >= deadline:
                    raise WaitTimeout(f"{self.name} {job.id} has not ended in time; it goes on")
                await service.sleep(pause)
                pause = min(_GROWTH * pause, self.longest_pause)
                job = await self._look(service, job, deadline)
        finally:
            bars.close()

    async def _look(self, service: Service, job: Job, deadline: float | None) -> Job:
        failures = 0
        while True:
            try:
                return await self.get(service, job.audit, job.id)
            except (APIConnectionError, InternalServerError):
                failures += 1
                late = deadline is not None and time.monotonic() >= deadline
                if late or failures > _MAX_FAILURES:
                    raise
                await service.sleep(service.policy.pause(failures - 1))

    def _settled(self, job: Job) -> Job:
        if job.error is not None:
            raise self.failed(job.id, job.error.code, job.error.detail, job.error.errors)
        if job.result is None:
            raise APIError(f"{self.name} {job.id} has {job.status}, but the service gives no result")
        return job

    def _path(self, audit_id: str) -> str:
        return f"v1/audits/{segment(audit_id)}/{self.name}s"


ATTRIBUTIONS = Jobs(Attribution, "attribution", AttributionFailed, 2.0)
"""A warm worker answers in a few seconds, a cold one loads the model first."""
EVALUATIONS = Jobs(Evaluation, "evaluation", EvaluationFailed, 5.0)
