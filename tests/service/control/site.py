"""Control over a real database, store and broker, with the other end of the queue in the test's hands."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import select

from atomscope.bundle.layout import bundle_prefix
from atomscope.store import LocalStore
from atomscope.types.spec import AuditConfig
from atomscope.types.work import (
    PIPELINE_QUEUE,
    UnitOrder,
    UnitReport,
    UnitStarted,
    UnitSucceeded,
    claim_key,
)
from atomscope_service.control.broker import Broker
from atomscope_service.control.reports import handle_report
from atomscope_service.control.scheduler import Scheduler
from atomscope_service.db.engine import Database
from atomscope_service.db.events import append_event
from atomscope_service.db.models import AdapterRow, AuditRow, DatasetRow, EventRow, ModelRow, UnitRow
from atomscope_service.db.projects import create_project
from atomscope_service.ids import new_id
from atomscope_service.settings import Settings
from tests.fixtures.valkey import Valkey

SHARDS = 3


class Site:
    """One installation of control, with a project and its inputs."""

    def __init__(self, folder: Path, database_url: str, valkey: Valkey, **changes: Any) -> None:
        values: dict[str, Any] = {
            "lease_seconds": 2.0,
            "queued_seconds": 0.05,
            "sweep_seconds": 0.2,
        } | changes
        self.settings = Settings(
            database_url=database_url,
            store=(folder / "store").as_uri(),
            broker_url=valkey.url,
            secret_file=folder / "secret",
            **values,
        )
        self.valkey = valkey
        self.database = Database(self.settings.database_url)
        self.store = LocalStore(folder / "store")
        self.broker = Broker(self.settings.broker_url)
        self.scheduler = Scheduler(self.database, self.store, self.broker, self.settings)
        with self.database.write() as session:
            self.project = create_project(session, new_id("prj")).id

    def close(self) -> None:
        self.broker.close()
        self.database.dispose()

    def environment(self) -> dict[str, str]:
        """The same settings for a process of `atomscope control`."""
        fields = msgspec.structs.asdict(self.settings)
        del fields["heartbeat_seconds"]  # follows the lease
        return {f"ATOMSCOPE_{name.upper()}": str(value) for name, value in fields.items() if value != ""}

    def submit(self) -> str:
        """Make an audit's rows as the API does, without telling control; its id."""
        now = datetime.now(UTC)
        common: dict[str, Any] = {"project_id": self.project, "created_at": now, "name": "n", "size": 1}
        model = ModelRow(
            id=new_id("mdl"), prefix="m/", sha256="0" * 64, source="registered", status="ready", **common
        )
        adapter = AdapterRow(
            id=new_id("ada"), prefix="a/", sha256="1" * 64, rank=4, target_modules=["q_proj"], **common
        )
        dataset = DatasetRow(id=new_id("ds"), key="d.jsonl", sha256="2" * 64, format="jsonl", **common)
        audit = AuditRow(
            id=new_id("aud"),
            project_id=self.project,
            created_at=now,
            status="queued",
            attempt=1,
            base_model_id=model.id,
            adapter_id=adapter.id,
            dataset_id=dataset.id,
            config=msgspec.to_builtins(AuditConfig()),
            metadata_={},
            warnings=[],
            event_sequence=0,
        )
        with self.database.write() as session:
            session.add_all([model, adapter, dataset])
            session.add(audit)
            session.flush()
            append_event(session, audit, "audit.queued", {})
        return audit.id

    # ------------------------------------------------------------ what there is

    def audit(self, audit_id: str) -> AuditRow:
        with self.database.read() as session:
            return session.scalars(select(AuditRow).where(AuditRow.id == audit_id)).one()

    def units(self, audit_id: str, stage: str | None = None) -> list[UnitRow]:
        query = select(UnitRow).where(UnitRow.audit_id == audit_id).order_by(UnitRow.id)
        with self.database.read() as session:
            rows = session.scalars(query).all()
        return [row for row in rows if stage in (None, row.stage)]

    def events(self, audit_id: str) -> list[EventRow]:
        with self.database.read() as session:
            query = select(EventRow).where(EventRow.audit_id == audit_id).order_by(EventRow.sequence)
            return list(session.scalars(query))

    def orders_waiting(self) -> int:
        return int(self.valkey.client.llen(PIPELINE_QUEUE))  # type: ignore[arg-type]

    # --------------------------------------------------------- a worker's part

    def take(self) -> UnitOrder | None:
        """Take the oldest order off the queue and claim it, as a worker does."""
        message = message_of(self.valkey, PIPELINE_QUEUE)
        if message is None:
            return None
        order = msgspec.convert(message[1]["order"], UnitOrder)
        self.valkey.client.set(claim_key(order.unit_id, order.fence), "test", nx=True, ex=100)
        return order

    def report(self, order: UnitOrder, kind: type[UnitReport], sequence: int, **facts: Any) -> bool:
        return handle_report(self.scheduler, msgspec.to_builtins(report_on(order, kind, sequence, **facts)))

    def succeed(self, order: UnitOrder, sequence: int = 2) -> bool:
        """Do an order: what it must leave in the store, and its success."""
        facts: dict[str, Any] = {}
        if order.stage == "validate":
            facts = {"shards": SHARDS, "documents": 30, "summary": {"warnings": ["it is small"]}}
        if order.stage == "report":
            prefix = bundle_prefix(order.project_id, order.audit_id, order.attempt, order.fence)
            self.store.put_bytes(f"{prefix}manifest.json", b"{}")
            facts = {"summary": {"n_atoms": 8}}
        return self.report(order, UnitSucceeded, sequence, **facts)

    def work(self, until: str | None = None) -> int:
        """Do orders until there are none, or until one of stage `until` is next; how many were done."""
        done = 0
        while self.orders_waiting():
            order = self.take()
            assert order is not None
            if order.stage == until:
                self.valkey.client.delete(claim_key(order.unit_id, order.fence))
                self.scheduler.broker.send_order(order)
                return done
            assert self.report(order, UnitStarted, 1)
            assert self.succeed(order)
            done += 1
        return done


def report_on(order: UnitOrder, kind: type[UnitReport], sequence: int, **facts: Any) -> UnitReport:
    return kind(
        project_id=order.project_id,
        audit_id=order.audit_id,
        attempt=order.attempt,
        unit_id=order.unit_id,
        stage=order.stage,
        index=order.index,
        fence=order.fence,
        sequence=sequence,
        worker="test",
        **facts,
    )


def message_of(valkey: Valkey, queue: str) -> tuple[list[Any], dict[str, Any]] | None:
    """Arguments and keyword arguments of the oldest message of a queue, taken off it."""
    text = valkey.client.rpop(queue)
    if text is None:
        return None
    message = json.loads(str(text))
    arguments, keywords, _ = json.loads(base64.b64decode(message["body"]))
    return arguments, keywords
