"""The state machines under any order, repetition and loss of messages, crashes and cancels."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atomscope.types.work import (
    FAN_OUT,
    PLANNED,
    STAGES,
    Stage,
    UnitAbandoned,
    UnitFailed,
    UnitHeartbeat,
    UnitStarted,
    UnitSucceeded,
    unit_count,
)
from atomscope_service.control.state import begin, on_cancel, on_expiry
from tests.service.control.world import DELIVERIES, LIMITS, Record, report_of

PLANS: st.SearchStrategy[dict[Stage, int]] = st.fixed_dictionaries(
    {}, optional={stage: st.integers(0, 3 if stage in FAN_OUT else 1) for stage in sorted(PLANNED)}
)
"""Units of three shards' stages."""


class AuditMachine(RuleBasedStateMachine):
    """Workers take sent units (each maybe more than once), report, crash; the network does as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.record = Record()
        self.network: list[Any] = []
        self.running: list[tuple[Any, list[int]]] = []
        self.fences: dict[str, int] = {}
        self.planned: dict[Stage, int] = {}
        self.cancel_asked = False

    @initialize(planned=PLANS)
    def submit(self, planned: dict[Stage, int]) -> None:
        self.planned = planned
        step = begin(self.record.audit, self.record.now, LIMITS, self.record.unit_id)
        assert self.record.apply(step)

    @precondition(lambda self: self.record.sent)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        """A worker takes an order that was sent at some time, even one that another took before."""
        unit = data.draw(st.sampled_from(self.record.sent))
        if len(self.running) < 6:
            self.running.append((unit, [1]))
            self.network.append(report_of(self.record.audit, unit, UnitStarted, 1))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), end=st.sampled_from(["beat", "succeed", "fail", "refuse", "abandon", "crash"]))
    def work(self, data: st.DataObject, end: str) -> None:
        place = data.draw(st.integers(0, len(self.running) - 1))
        unit, sequence = self.running[place]
        sequence[0] += 1
        audit = self.record.audit
        if end == "beat":
            self.network.append(report_of(audit, unit, UnitHeartbeat, sequence[0], done=1, total=2))
            return
        del self.running[place]
        facts = {"code": "c", "detail": "d"}
        if end == "succeed":
            self.network.append(self._succeeded(unit, sequence[0]))
        elif end == "fail":
            self.network.append(report_of(audit, unit, UnitFailed, sequence[0], retryable=True, **facts))
        elif end == "refuse" and data.draw(st.integers(0, 9)) == 0:
            self.network.append(report_of(audit, unit, UnitFailed, sequence[0], retryable=False, **facts))
        elif end == "abandon":
            self.network.append(report_of(audit, unit, UnitAbandoned, sequence[0]))

    def _succeeded(self, unit: Any, sequence: int) -> Any:
        told = {"summary": {"units": self.planned}} if unit.stage == "validate" else {}
        return report_of(self.record.audit, unit, UnitSucceeded, sequence, **told)

    @precondition(lambda self: self.network)
    @rule(data=st.data(), fate=st.sampled_from(["deliver", "deliver", "deliver", "repeat", "lose"]))
    def deliver(self, data: st.DataObject, fate: str) -> None:
        """Any message in flight arrives, arrives and stays in flight, or is lost."""
        place = data.draw(st.integers(0, len(self.network) - 1))
        report = self.network[place] if fate == "repeat" else self.network.pop(place)
        if fate != "lose":
            self.record.report(report)

    @rule(seconds=st.integers(1, 90), data=st.data())
    def sweep(self, seconds: int, data: st.DataObject) -> None:
        self.record.now += timedelta(seconds=seconds)
        for unit in self.record.live():
            delivery = data.draw(st.sampled_from(DELIVERIES))
            now, audit = self.record.now, self.record.audit
            current = self.record.units[unit.id]
            self.record.apply(on_expiry(audit, current, self.record.siblings, delivery, now, LIMITS))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if data.draw(st.integers(0, 19)) == 0:
            self.cancel_asked = True
            self.record.apply(on_cancel(self.record.audit, self.record.siblings, self.record.now))

    @invariant()
    def fences_only_rise(self) -> None:
        for unit in self.record.units.values():
            assert unit.fence >= self.fences.get(unit.id, 1)
            self.fences[unit.id] = unit.fence

    @invariant()
    def units_count_once(self) -> None:
        assert all(count == 1 for count in self.record.finished.values())
        places = [(unit.stage, unit.index) for unit in self.record.units.values()]
        assert len(set(places)) == len(places)

    @invariant()
    def it_ends_once_and_leaves_nothing_running(self) -> None:
        ended = self.record.audit.status in ("succeeded", "failed", "canceled")
        assert self.record.endings == (1 if ended else 0)
        assert not ended or not self.record.live()
        assert ended or self.record.live() or not self.record.units, "nothing is left that could end it"
        if self.record.audit.status == "canceled":
            assert self.cancel_asked
        if self.record.audit.status == "succeeded":
            assert len(self.record.finished) == sum(unit_count(stage, 3, self.planned) for stage in STAGES)

    def teardown(self) -> None:
        """Whatever has happened, an honest worker and a sweep bring the audit to its end."""
        for _ in range(200):
            live = self.record.live()
            if not live:
                break
            unit = live[0]
            self.record.report(self._succeeded(unit, unit.sequence + 1))
        assert not self.record.units or self.record.endings == 1


AuditMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
test_audits_under_any_fate = AuditMachine.TestCase
