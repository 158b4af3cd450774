"""The state machine of jobs, rule by rule and under any fate."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from atomscope.types.jobs import (
    JobAbandoned,
    JobFailed,
    JobHeartbeat,
    JobOrder,
    JobReport,
    JobStarted,
    JobSucceeded,
    result_key,
)
from atomscope_service.control.jobs import ENDED, Job, JobStep, fail_job, on_job_expiry, on_job_report
from atomscope_service.control.steps import Rejected
from tests.service.control.world import DELIVERIES, LIMITS, START

FAILED = {"code": "worker_error", "detail": "lost its way", "retryable": True}


def a_job(**changes: Any) -> Job:
    values: dict[str, Any] = {"lease_expires_at": START + LIMITS.queued} | changes
    return Job(
        id="atr_1",
        project_id="prj_1",
        audit_id="aud_1",
        kind="attribution",
        request={"prompt": "p"},
        **values,
    )


def report_of(job: Job | JobOrder, kind: type[JobReport], sequence: int, /, **facts: Any) -> Any:
    values: dict[str, Any] = {
        "project_id": job.project_id,
        "job_id": job.id if isinstance(job, Job) else job.job_id,
        "fence": job.fence,
        "sequence": sequence,
        "worker": "w",
    }
    return kind(**(values | facts))


def after(job: Job, report: Any, now: datetime = START) -> JobStep:
    step = on_job_report(job, report, now, LIMITS)
    assert isinstance(step, JobStep), step
    return step


# ------------------------------------------------------------------- the rules


@pytest.mark.parametrize(
    ("kind", "facts"), [(JobStarted, {}), (JobHeartbeat, {"done": 1, "total": 4, "unit": "steps"})]
)
def test_any_sign_of_life_makes_a_job_run_and_renews_its_lease(
    kind: type[JobReport], facts: dict[str, Any]
) -> None:
    step = after(a_job(), report_of(a_job(), kind, 1, **facts))
    assert (step.job.status, step.job.started_at, step.send) == ("running", START, False)
    assert step.job.lease_expires_at == START + LIMITS.lease
    assert (step.job.done, step.job.total) == (facts.get("done", 0), facts.get("total", 0))
    later = after(step.job, report_of(step.job, JobHeartbeat, 2), START + timedelta(seconds=9))
    assert later.job.lease_expires_at == START + timedelta(seconds=9) + LIMITS.lease
    assert later.job.started_at == START


def test_counts_are_kept_within_bounds() -> None:
    step = after(a_job(), report_of(a_job(), JobHeartbeat, 1, done=9, total=-3))
    assert (step.job.done, step.job.total) == (0, 0)
    step = after(a_job(), report_of(a_job(), JobHeartbeat, 1, done=2**80, total=2**70))
    assert step.job.done == step.job.total == 2**31 - 1


@pytest.mark.parametrize("status", ["queued", "running"])
def test_success_names_the_result_of_its_own_fence_even_when_the_start_was_lost(status: str) -> None:
    job = a_job(status=status, fence=2, error={"code": "c", "detail": "d", "errors": []})
    ended = after(job, report_of(job, JobSucceeded, 1)).job
    assert (ended.status, ended.ended_at, ended.started_at) == ("succeeded", START, START)
    assert ended.result_key == result_key("prj_1", "aud_1", "atr_1", 2)
    assert (ended.lease_expires_at, ended.error) == (None, None)


def test_bad_input_ends_a_job_at_once_with_what_was_said_of_it() -> None:
    facts = {"code": "bad_row", "detail": "x\0" + "y" * 9_000, "retryable": False}
    errors = [{"file": "query", "line": 1, "surprise": "s", "message": "m"}] * 200
    step = after(a_job(), report_of(a_job(), JobFailed, 1, errors=errors, **facts))
    assert (step.job.status, step.send, step.job.ended_at) == ("failed", False, START)
    assert step.job.error is not None
    assert step.job.error["code"] == "bad_row"
    assert len(step.job.error["detail"]) == 2_000
    assert "\0" not in step.job.error["detail"]
    assert step.job.error["errors"] == [{"file": "query", "line": 1, "message": "m"}] * 100


def test_what_may_do_better_is_sent_again_under_a_higher_fence() -> None:
    job = a_job(status="running", sequence=4, done=2, total=3, worker="w", started_at=START)
    step = after(job, report_of(job, JobFailed, 5, **FAILED), START + timedelta(seconds=5))
    assert step.send
    assert (step.job.status, step.job.fence, step.job.sequence, step.job.worker) == ("queued", 2, 0, None)
    assert (step.job.done, step.job.started_at, step.job.ended_at) == (0, START, None)
    assert step.job.lease_expires_at == START + timedelta(seconds=5) + LIMITS.queued


def test_the_last_attempt_that_fails_ends_the_job_and_tells_why() -> None:
    job = a_job()
    for fence in range(1, LIMITS.max_attempts):
        job = after(job, report_of(job, JobFailed, 1, **FAILED)).job
        assert (job.status, job.fence) == ("queued", fence + 1)
    job = after(job, report_of(job, JobFailed, 1, **FAILED)).job
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "job_attempts_exhausted"
    assert job.error["detail"] == "it failed 5 times, the last time: lost its way"


def test_a_stopped_worker_costs_no_attempt_but_not_for_ever() -> None:
    job, sends = a_job(), 0
    while job.status == "queued":
        job = after(job, report_of(job, JobAbandoned, 1)).job
        sends += 1
    assert sends == LIMITS.max_attempts + 20
    assert job.status == "failed"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"v": 2}, "version 2"),
        ({"project_id": "prj_2"}, "another job"),
        ({"job_id": "atr_2"}, "another job"),
        ({"fence": 1}, "fence 1"),
        ({"fence": 3}, "fence 3"),
        ({"sequence": 4}, "sequence 4"),
        ({"sequence": -1}, "sequence -1"),
    ],
)
@pytest.mark.parametrize("kind", [JobStarted, JobHeartbeat, JobSucceeded, JobAbandoned])
def test_a_report_that_is_not_of_the_live_fence_and_sequence_changes_nothing(
    kind: type[JobReport], changes: dict[str, Any], why: str
) -> None:
    job = a_job(status="running", fence=2, sequence=4)
    outcome = on_job_report(job, report_of(job, kind, 5, **changes), START, LIMITS)
    assert isinstance(outcome, Rejected)
    assert why in outcome.reason


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_nothing_changes_a_job_that_has_ended(status: str) -> None:
    job = a_job(status=status, lease_expires_at=None)
    assert isinstance(on_job_report(job, report_of(job, JobSucceeded, 9), START, LIMITS), Rejected)
    assert on_job_expiry(job, "lost", START, LIMITS) is None
    assert fail_job(job, "c", "d", START) is None


LATER = START + LIMITS.queued + LIMITS.lease


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_before_its_deadline_a_job_is_left_alone(delivery: Any) -> None:
    for status in ("queued", "running"):
        job = a_job(status=status)
        assert on_job_expiry(job, delivery, START + LIMITS.queued / 2, LIMITS) is None


def test_a_lost_order_is_sent_again_under_the_same_fence_and_a_waiting_one_is_not() -> None:
    for delivery, send in (("lost", True), ("waiting", False)):
        step = on_job_expiry(a_job(), delivery, LATER, LIMITS)  # type: ignore[arg-type]
        assert step is not None
        assert (step.send, step.job.fence, step.job.status) == (send, 1, "queued")
        assert step.job.lease_expires_at == LATER + LIMITS.queued


def test_an_order_that_was_taken_gets_a_lease_and_a_lease_that_ends_a_higher_fence() -> None:
    step = on_job_expiry(a_job(), "taken", LATER, LIMITS)
    assert step is not None
    assert (step.send, step.job.status, step.job.fence) == (False, "running", 1)
    step = on_job_expiry(step.job, "lost", LATER + LIMITS.lease, LIMITS)
    assert step is not None
    assert (step.send, step.job.status, step.job.fence) == (True, "queued", 2)
    assert step.job.error is not None
    assert step.job.error["code"] == "lease_expired"


# -------------------------------------------------------------- under any fate


class JobMachine(RuleBasedStateMachine):
    """Workers take sent orders, each maybe more than once; reports arrive, repeat, get lost or overtake."""

    def __init__(self) -> None:
        super().__init__()
        self.job, self.now = a_job(), START
        self.sent, self.network, self.running = [self.job], list[Any](), list[tuple[Job, list[int]]]()
        self.fence, self.endings = 1, 0

    def apply(self, step: JobStep | Rejected | None) -> None:
        if step is None or isinstance(step, Rejected):
            return
        assert self.job.status not in ENDED, "a job that has ended was changed"
        assert step.job.fence > self.job.fence or step.job.sequence >= self.job.sequence
        self.endings += step.job.status in ENDED
        self.job = step.job
        if step.send:
            self.sent.append(self.job)

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.sent))
        if len(self.running) < 4:
            self.running.append((job, [1]))
            self.network.append(report_of(job, JobStarted, 1))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), end=st.sampled_from(["beat", "succeed", "fail", "refuse", "abandon", "crash"]))
    def work(self, data: st.DataObject, end: str) -> None:
        place = data.draw(st.integers(0, len(self.running) - 1))
        job, sequence = self.running[place]
        sequence[0] += 1
        if end == "beat":
            self.network.append(report_of(job, JobHeartbeat, sequence[0], done=1, total=2))
            return
        del self.running[place]
        if end == "succeed":
            self.network.append(report_of(job, JobSucceeded, sequence[0]))
        elif end in ("fail", "refuse"):
            facts = FAILED | {"retryable": end == "fail"}
            self.network.append(report_of(job, JobFailed, sequence[0], **facts))
        elif end == "abandon":
            self.network.append(report_of(job, JobAbandoned, sequence[0]))

    @precondition(lambda self: self.network)
    @rule(data=st.data(), fate=st.sampled_from(["deliver", "deliver", "repeat", "lose"]))
    def deliver(self, data: st.DataObject, fate: str) -> None:
        place = data.draw(st.integers(0, len(self.network) - 1))
        report = self.network[place] if fate == "repeat" else self.network.pop(place)
        if fate == "lose":
            return
        outcome = on_job_report(self.job, report, self.now, LIMITS)
        if report.fence != self.job.fence:
            assert isinstance(outcome, Rejected), "a stale report was taken"
        self.apply(outcome)

    @rule(seconds=st.integers(1, 90), delivery=st.sampled_from(DELIVERIES))
    def sweep(self, seconds: int, delivery: Any) -> None:
        self.now += timedelta(seconds=seconds)
        self.apply(on_job_expiry(self.job, delivery, self.now, LIMITS))

    @invariant()
    def fences_only_rise_and_it_ends_once(self) -> None:
        assert self.job.fence >= self.fence
        self.fence = self.job.fence
        assert self.endings == (self.job.status in ENDED)
        assert (self.job.lease_expires_at is None) == (self.job.status in ENDED)
        assert (self.job.result_key is not None) == (self.job.status == "succeeded")
        assert (self.job.ended_at is not None) == (self.job.status in ENDED)

    def teardown(self) -> None:
        """Whatever has happened, an honest worker brings it to its end."""
        if self.job.status not in ENDED:
            self.apply(
                on_job_report(
                    self.job, report_of(self.job, JobSucceeded, self.job.sequence + 1), self.now, LIMITS
                )
            )
        assert self.endings == 1


JobMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
test_jobs_under_any_fate = JobMachine.TestCase
