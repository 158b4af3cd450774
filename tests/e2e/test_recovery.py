"""Workers die and users cancel; the audit's record stays right."""

from __future__ import annotations

import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest

import atomscope
from atomscope.types.spec import AuditConfig
from tests.fixtures.corpus import write_corpus
from tests.fixtures.stack import Stack

DOCUMENTS = 12
SLOW = AuditConfig(
    dtype="float32",
    shard_documents=6,
    token_budget=128,
    components=8,
    n_atoms=4,
    alpha=0.05,
    min_active=2,
    top_documents=6,
    fits=1,
    surrogates=0,
)
"""Many micro-batches a shard, so that there is a middle to be killed in."""


def _wait_for_extraction(audit: atomscope.Audit, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        audit.refresh()
        if audit.stage == "extract" and audit.progress is not None and 0 < audit.progress.done < DOCUMENTS:
            return
        if audit.status in ("succeeded", "failed", "canceled"):
            break
        time.sleep(0.02)
    pytest.fail(f"the audit was never seen in mid-extraction; it is {audit.status} at {audit.stage}")


def test_a_worker_killed_in_mid_extraction_costs_no_document(
    stack: Stack, smollm2: Path, smollm2_adapter: Path, tmp_path: Path
) -> None:
    """It is started again, so that the stack is left as it was."""
    dataset = write_corpus(tmp_path / "train.jsonl", documents=DOCUMENTS)
    with stack.client() as client:
        model = stack.register_model("smollm2", smollm2)
        audit = client.audits.create(base_model=model, adapter=smollm2_adapter, dataset=dataset, config=SLOW)
        _wait_for_extraction(audit)
        (worker,) = stack.pids("worker")
        killed = datetime.now(UTC)
        os.kill(worker, signal.SIGKILL)
        audit.wait(timeout=400)
        events = list(audit.events())
        retried = [event for event in events if event.type == "audit.unit_retried"]
        assert retried, "the lost shard was never sent again"
        waited = (datetime.fromisoformat(retried[0].created_at) - killed).total_seconds()
        assert waited < 60, "by the lease, not by the visibility timeout of the broker"
        assert audit.status == "succeeded"
        bundle = atomscope.open(audit.download(tmp_path / "bundle"))
        rows = np.concatenate([shard["document"] for shard in bundle.gradients()])
        assert rows.tolist() == list(range(DOCUMENTS)), "a document was lost or counted twice"


def test_cancel_stops_a_running_audit(
    stack: Stack, smollm2: Path, smollm2_adapter: Path, tmp_path: Path
) -> None:
    dataset = write_corpus(tmp_path / "train.jsonl", documents=DOCUMENTS)
    with stack.client() as client:
        model = stack.register_model("smollm2-cancel", smollm2)
        # Another template, so that it does not take what another test of the stack has extracted.
        config = msgspec.structs.replace(SLOW, chat_template="zephyr")
        audit = client.audits.create(
            base_model=model, adapter=smollm2_adapter, dataset=dataset, config=config
        )
        _wait_for_extraction(audit)
        asked = time.monotonic()
        audit.cancel()
        with pytest.raises(atomscope.AuditCanceled):
            audit.wait(timeout=60)
        assert time.monotonic() - asked < 20
        with pytest.raises(atomscope.ConflictError) as caught:
            client.audits.get(audit.id).report()
        assert caught.value.code == "audit_not_succeeded"
