"""The context that stages are given, and that every stage obeys it when it is told to stop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import msgspec
import pytest

from atomscope.store import ObjectNotFound
from atomscope.types.spec import AuditConfig
from atomscope.types.work import STAGES, Stage
from atomscope_workers.local_context import LocalContext
from atomscope_workers.stages.context import StageContext, Stopped, UnitResult
from atomscope_workers.stages.registry import STAGE_FUNCTIONS
from tests.fixtures.corpus import write_corpus
from tests.workers.stages.units import Audit, a_spec, unit

CONFIG = AuditConfig(
    dtype="float32", shard_documents=8, components=4, n_atoms=2, alpha=0.3, min_active=2, top_documents=4
)
STOPPABLE: list[tuple[Stage, str]] = [
    ("validate", "plan.json"),
    ("extract", "gradients/"),
    ("eigenbases", "work/eigenbases"),
    ("lambdas", "work/lambdas/"),
    ("curvature", "curvature/"),
    ("project", "projected/"),
    ("dictionary", "atoms/dictionary.safetensors"),
    ("evidence", "work/evidence.json"),
    ("combine", "work/vectors/"),
    ("vectors", "vectors/"),
    ("characterise", "atoms/atoms.json"),
]
"""Stages that may take long, and what they write."""


@dataclass
class StoppedContext(LocalContext):
    """Of an audit that is being canceled."""

    def checkpoint(self) -> None:
        raise Stopped


@pytest.fixture(scope="module")
def audit(tiny_llama: Path, plain_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """Every stage but the report, of 16 documents in two shards."""
    folder = tmp_path_factory.mktemp("context")
    dataset = write_corpus(folder / "train.jsonl", 16)
    spec = a_spec(CONFIG, base_model=tiny_llama, adapter=plain_adapter, dataset=dataset)
    audit = Audit(folder / "work", spec, 2)
    audit.run(*STAGES[:-1])
    return audit


@pytest.mark.parametrize(("stage", "output"), STOPPABLE)
def test_a_stage_that_is_told_to_stop_stops_before_it_writes(
    audit: Audit, tmp_path: Path, stage: Stage, output: str
) -> None:
    work = Path(copytree(audit.work, tmp_path / "work"))
    for path in [path for path in (work / "files").rglob("*") if path.is_file()]:
        if path.relative_to(work / "files").as_posix().startswith(output):
            path.unlink()
    ctx = unit(work, stage, audit.spec, shards=audit.shards)
    stopped = StoppedContext(**{name: getattr(ctx, name) for name in LocalContext.__dataclass_fields__})
    with pytest.raises(Stopped):
        STAGE_FUNCTIONS[stage](stopped)
    assert [path for path in stopped.written if path.startswith(output)] == []
    assert [path for path in ctx.outputs() if path.startswith(output)] == []


def test_outputs_are_told_sorted_and_read_back(tmp_path: Path) -> None:
    ctx: StageContext = unit(tmp_path / "work", "validate", a_spec())
    (ctx.scratch / "b").write_bytes(b"from a file")
    ctx.write("x/b", ctx.scratch / "b")
    ctx.write_bytes("a", b"bytes")
    assert ctx.outputs() == ["a", "x/b"]
    assert ctx.read("x/b").read_bytes() == b"from a file"
    (ctx.scratch / "b").write_bytes(b"changed later")
    assert ctx.read("x/b").read_bytes() == b"from a file"


@pytest.mark.parametrize("path", ["none", "x", "x/c"])
def test_what_was_not_written_is_not_found(tmp_path: Path, path: str) -> None:
    ctx = unit(tmp_path / "work", "validate", a_spec())
    ctx.write_bytes("x/b", b"")
    with pytest.raises(ObjectNotFound, match=path):
        ctx.read(path)


def test_a_result_survives_its_marker() -> None:
    result = UnitResult(shards=2, documents=9, summary={"warnings": ["größer"], "n_rows": 10})
    assert msgspec.json.decode(msgspec.json.encode(result), type=UnitResult) == result
    assert UnitResult() == UnitResult(shards=None, documents=None, summary={})
