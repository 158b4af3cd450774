"""Control over a real database and broker: what it records, what it sends, and what it heals."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select

from atomscope.types.spec import AuditSpec
from atomscope.types.work import (
    FAN_OUT,
    PIPELINE_QUEUE,
    STAGES,
    UnitAbandoned,
    UnitFailed,
    UnitHeartbeat,
    UnitStarted,
    UnitSucceeded,
    cancel_key,
    live_fence_key,
)
from atomscope_service.control.broker import BrokerUnavailable
from atomscope_service.control.queue import ControlQueue
from atomscope_service.control.reports import handle_report
from atomscope_service.control.sweeper import sweep
from atomscope_service.db.models import DatasetRow, DeletionRow
from tests.fixtures.valkey import Valkey
from tests.service.control.site import SHARDS, Site, message_of, report_on

UNITS = len(STAGES) + len(FAN_OUT) * (SHARDS - 1)
"""Of an audit."""
QUEUED = 0.06
"""Seconds after which a queued unit of `Site` is looked after."""


def test_an_order_follows_its_live_fence_and_starting_twice_sends_it_once(site: Site) -> None:
    audit = site.submit()
    site.scheduler.start(site.project, audit)
    site.scheduler.start(site.project, audit)
    (unit,) = site.units(audit)
    assert site.orders_waiting() == 1
    assert site.valkey.client.get(live_fence_key(unit.id)) == "1"
    order = site.take()
    assert order is not None
    assert (order.stage, order.index, order.fence, order.heartbeat_seconds) == ("validate", 0, 1, 0.5)
    spec = msgspec.json.decode(site.store.get_bytes(order.spec_key), type=AuditSpec)
    assert (spec.audit_id, spec.dataset.location) == (audit, "d.jsonl")
    assert site.audit(audit).status == "queued", "it runs once a worker has taken it"


def test_an_audit_goes_through_every_stage_and_leaves_a_gapless_history(any_site: Site) -> None:
    site = any_site
    audit = site.submit()
    site.scheduler.start(site.project, audit)
    assert site.work() == UNITS
    row = site.audit(audit)
    assert (row.status, row.n_atoms, row.n_documents, row.warnings) == ("succeeded", 8, 30, ["it is small"])
    assert row.bundle_prefix == f"projects/{site.project}/audits/{audit}/bundle-a1-f1/"
    events = site.events(audit)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    kinds = Counter(event.type for event in events)
    assert kinds["audit.stage"] == len(STAGES)
    assert (kinds["audit.running"], kinds["audit.warning"], kinds["audit.succeeded"]) == (1, 1, 1)
    assert events[-1].type == "audit.succeeded"
    with site.database.read() as session:
        removed = list(session.scalars(select(DeletionRow.prefix)))
    assert removed == [f"projects/{site.project}/audits/{audit}/a1/"]


def test_orders_name_the_winning_fences_of_finished_stages(site: Site) -> None:
    audit = site.submit()
    site.scheduler.start(site.project, audit)
    site.work(until="extract")
    first = site.take()
    assert first is not None
    failure = {"code": "worker_error", "detail": "lost its way", "retryable": True}
    assert site.report(first, UnitFailed, 1, **failure)
    site.work(until="eigenbases")
    order = site.take()
    assert order is not None
    assert order.winners["validate"] == [1]
    assert sorted(order.winners["extract"]) == [1, 1, 2]
    assert order.winners["extract"][first.index] == 2


def test_a_late_commit_under_an_old_fence_is_refused(site: Site) -> None:
    audit = site.submit()
    site.scheduler.start(site.project, audit)
    slow = site.take()
    assert slow is not None
    assert site.report(slow, UnitStarted, 1)
    time.sleep(2.1)
    assert sweep(site.scheduler) == 1
    assert site.valkey.client.get(live_fence_key(slow.unit_id)) == "2"
    assert not site.succeed(slow)
    fast = site.take()
    assert fast is not None
    assert (fast.unit_id, fast.fence) == (slow.unit_id, 2)
    assert site.succeed(fast)
    assert not site.succeed(fast, sequence=3)
    assert len(site.units(audit, "extract")) == SHARDS
    assert [event.type for event in site.events(audit)].count("audit.unit_retried") == 1


def test_a_unit_that_waits_in_a_long_queue_is_left_alone(site: Site) -> None:
    audits = [site.submit() for _ in range(3)]
    sweep(site.scheduler)  # nobody told control of them
    assert site.orders_waiting() == 3
    time.sleep(QUEUED)
    for _ in range(3):
        sweep(site.scheduler)
        time.sleep(QUEUED)
    assert site.orders_waiting() == 3
    assert [site.units(audit)[0].fence for audit in audits] == [1, 1, 1]


def test_an_order_that_the_broker_lost_is_sent_again_under_the_same_fence(site: Site) -> None:
    audit = site.submit()
    site.scheduler.start(site.project, audit)
    site.valkey.client.flushall()
    time.sleep(QUEUED)
    sweep(site.scheduler)
    order = site.take()
    assert order is not None
    assert order.fence == 1
    assert site.succeed(order)
    assert "audit.unit_retried" not in [event.type for event in site.events(audit)]


def test_a_worker_that_died_between_its_claim_and_its_first_report_is_replaced(site: Site) -> None:
    audit = site.submit()
    site.scheduler.start(site.project, audit)
    assert site.take() is not None
    time.sleep(QUEUED)
    sweep(site.scheduler)
    assert [unit.state for unit in site.units(audit)] == ["leased"]
    assert site.orders_waiting() == 0
    time.sleep(2.1)
    sweep(site.scheduler)
    again = site.take()
    assert again is not None
    assert again.fence == 2


def test_units_are_looked_for_in_a_queue_of_many_pages(site: Site) -> None:
    audit = site.submit()
    site.scheduler.start(site.project, audit)
    text = site.valkey.client.lindex(PIPELINE_QUEUE, 0)
    site.valkey.client.lpush(PIPELINE_QUEUE, *(["not json", "[]", '{"headers": 1}'] * 600))
    assert site.broker.waiting_orders() == {f"{site.units(audit)[0].id}.1"}
    assert text is not None


def test_a_broker_that_is_down_at_submission_delays_the_audit_only(
    tmp_path: Path, migrated_sqlite: Path, own_valkey: Valkey
) -> None:
    shutil.copyfile(migrated_sqlite, tmp_path / "atomscope.db")
    site = Site(tmp_path, f"sqlite:///{tmp_path / 'atomscope.db'}", own_valkey)
    own_valkey.stop()
    queue = ControlQueue(own_valkey.url, 2.0)
    audit = site.submit()
    asked = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        queue.audit_created(site.project, audit)
    with pytest.raises(BrokerUnavailable):
        queue.ping()
    assert time.monotonic() - asked < 10
    site.scheduler.start(site.project, audit)
    assert [unit.state for unit in site.units(audit)] == ["queued"]
    time.sleep(QUEUED)
    with pytest.raises(BrokerUnavailable):
        sweep(site.scheduler)
    own_valkey.start()
    sweep(site.scheduler)
    assert site.work() > 0
    assert site.audit(audit).status == "succeeded"
    queue.ping()
    queue.close()
    site.close()


def test_a_cancel_whose_message_was_lost_is_carried_on(site: Site) -> None:
    audit = site.submit()
    site.scheduler.start(site.project, audit)
    with site.database.write() as session:
        row = session.get(type(site.audit(audit)), audit)
        assert row is not None
        row.status = "canceling"
    sweep(site.scheduler)
    assert site.audit(audit).status == "canceled"
    order = site.take()
    assert order is not None
    assert site.valkey.client.get(live_fence_key(order.unit_id)) == "0", "whoever takes it up stops at once"


@pytest.mark.parametrize("moment", range(2 * UNITS + 1))
def test_a_cancel_between_any_two_messages_ends_the_audit_as_canceled(site: Site, moment: int) -> None:
    audit = site.submit()
    site.scheduler.start(site.project, audit)
    messages = itertools.count()
    held = None
    canceled = False
    while site.orders_waiting() and not canceled:
        held = None
        if next(messages) == moment:
            site.scheduler.cancel(site.project, audit)
            canceled = True
            break
        held = site.take()
        assert held is not None
        assert site.report(held, UnitStarted, 1)
        if next(messages) == moment:
            site.scheduler.cancel(site.project, audit)
            canceled = True
            break
        site.succeed(held)
    if not canceled:
        site.scheduler.cancel(site.project, audit)
        assert site.audit(audit).status == "succeeded", "a cancel after the end changes nothing"
        return
    assert site.valkey.client.exists(cancel_key(audit))
    if held is not None:
        assert site.audit(audit).status == "canceling"
        assert site.report(held, UnitAbandoned, 2)
    assert site.audit(audit).status == "canceled"
    assert {unit.state for unit in site.units(audit)} <= {"succeeded", "stopped"}
    kinds = Counter(event.type for event in site.events(audit))
    assert (kinds["audit.canceled"], kinds["audit.succeeded"], kinds["audit.failed"]) == (1, 0, 0)


def test_one_success_told_by_many_at_once_counts_once(any_site: Site) -> None:
    site = any_site
    audit = site.submit()
    site.scheduler.start(site.project, audit)
    order = site.take()
    assert order is not None
    message = msgspec.to_builtins(report_on(order, UnitSucceeded, 1, shards=SHARDS, documents=30))
    taken: list[bool] = []
    threads = [
        threading.Thread(target=lambda: taken.append(handle_report(site.scheduler, message)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False] * 7 + [True]
    assert len(site.units(audit, "extract")) == SHARDS
    assert site.orders_waiting() == SHARDS


def test_progress_is_told_as_counts_over_all_shards_and_at_most_twice_a_second(site: Site) -> None:
    audit = site.submit()
    site.scheduler.start(site.project, audit)
    site.work(until="extract")
    order = site.take()
    assert order is not None
    before = len(site.events(audit))
    began = time.monotonic()
    for done in range(1, 11):
        assert site.report(order, UnitHeartbeat, done, done=done, total=10, unit="documents")
        time.sleep(0.02)
    told = [event for event in site.events(audit)[before:] if event.type == "audit.progress"]
    assert 1 <= len(told) <= 1 + (time.monotonic() - began) / 0.5
    assert told[0].data | {"done": 0} == {
        "stage": "extract",
        "done": 0,
        "total": 30,
        "unit": "documents",
        "units_done": 0,
        "units": SHARDS,
    }
    assert site.succeed(order, 11)
    last = site.events(audit)[-1]
    assert (last.type, last.data["done"], last.data["units_done"]) == ("audit.progress", 10, 1)


@pytest.mark.parametrize(
    "message",
    [
        None,
        "started",
        {},
        {"type": "started"},
        {"type": "promoted", "audit_id": "aud_1"},
        {"type": "started", "sequence": "1"},
        {"type": "failed", "detail": "x" * 300_000},
    ],
)
def test_a_message_that_is_no_report_changes_nothing(site: Site, message: object) -> None:
    assert not handle_report(site.scheduler, message)


def test_a_report_of_another_project_is_refused(site: Site) -> None:
    audit = site.submit()
    site.scheduler.start(site.project, audit)
    order = site.take()
    assert order is not None
    stolen = msgspec.structs.replace(report_on(order, UnitStarted, 1), project_id="prj_default")
    assert not handle_report(site.scheduler, msgspec.to_builtins(stolen))


def test_a_bundle_that_is_not_in_the_store_is_no_success(site: Site) -> None:
    audit = site.submit()
    site.scheduler.start(site.project, audit)
    site.work(until="report")
    order = site.take()
    assert order is not None
    assert site.report(order, UnitSucceeded, 1)
    (unit,) = site.units(audit, "report")
    assert (unit.state, unit.fence) == ("queued", 2)
    assert unit.error is not None
    assert unit.error["code"] == "bundle_missing"
    assert site.work() == 1
    assert site.audit(audit).bundle_prefix == f"projects/{site.project}/audits/{audit}/bundle-a1-f2/"
    with site.database.read() as session:
        removed = set(session.scalars(select(DeletionRow.prefix)))
    assert f"projects/{site.project}/audits/{audit}/bundle-a1-f1/" in removed


def test_an_audit_whose_data_set_is_gone_fails_and_does_not_hold_up_others(site: Site) -> None:
    broken, sound = site.submit(), site.submit()
    with site.database.write() as session:
        dataset = session.get(DatasetRow, site.audit(broken).dataset_id)
        assert dataset is not None
        session.delete(dataset)
    sweep(site.scheduler)
    row = site.audit(broken)
    assert row.status == "failed"
    assert row.error is not None
    assert row.error["code"] == "input_missing"
    assert len(site.units(sound)) == 1


def test_the_api_reaches_control_by_its_queue(site: Site) -> None:
    queue = ControlQueue(site.valkey.url, 2.0)
    queue.audit_created("prj_1", "aud_1")
    queue.cancel_requested("prj_1", "aud_1")
    queue.deletions_added()
    queue.hub_import_requested("prj_1", "mdl_1")
    sent = [message_of(site.valkey, "control") for _ in range(4)]
    assert [message[0] for message in sent if message] == [
        ["prj_1", "aud_1"],
        ["prj_1", "aud_1"],
        [],
        ["prj_1", "mdl_1"],
    ]
    queue.close()
