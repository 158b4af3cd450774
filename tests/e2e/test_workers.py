"""Several workers on one audit."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

import atomscope
from atomscope.cli.registry import LocalRun
from tests.e2e.computed import computed, run_alone
from tests.fixtures.corpus import SMALL, write_corpus
from tests.fixtures.stack import Stack, running_stack

CONFIG = msgspec.structs.replace(SMALL, shard_documents=1, gradients="none")
"""Many small shards, which no second audit takes over: each is extracted anew."""
WORKERS, DOCUMENTS, TRIES = 2, 24, 10


def _extracting(stack: Stack, audit: str) -> set[str]:
    """The workers that extracted shards of an audit."""
    address = f"file:{stack.data_dir / 'atomscope.db'}?mode=ro"
    with closing(sqlite3.connect(address, uri=True)) as database:
        found = database.execute(
            "SELECT worker FROM units WHERE audit_id = ? AND stage = 'extract'", (audit,)
        )
        return {str(worker) for (worker,) in found}


def test_two_workers_find_to_the_byte_what_one_process_finds(
    tiny_llama: Path, plain_adapter: Path, tmp_path: Path
) -> None:
    dataset = write_corpus(tmp_path / "train.jsonl", DOCUMENTS)
    with running_stack(WORKERS) as stack, stack.client() as client:
        model = stack.register_model("tiny", tiny_llama)
        for _ in range(TRIES):  # the second may still be starting while the first does a whole audit
            audit = client.audits.create(
                base_model=model, adapter=plain_adapter, dataset=dataset, config=CONFIG
            )
            audit.wait(timeout=180)
            if len(_extracting(stack, audit.id)) == WORKERS:
                break
        else:
            pytest.fail(f"one worker did all of {TRIES} audits")
        shared = computed(atomscope.open(audit.download(tmp_path / "bundle")))
    request = LocalRun(
        base_model=tiny_llama,
        adapter=plain_adapter,
        dataset=dataset,
        out=tmp_path / "alone",
        config=CONFIG,
    )
    alone = run_alone(request, WORKERS)
    assert "plan.json" in shared
    assert shared == computed(atomscope.open(alone))
