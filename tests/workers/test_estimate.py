"""`--dry-run` says what the audit will take, without leaving a trace of itself."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from atomscope.bundle import open_bundle
from atomscope.cli.registry import Estimate, LocalRun
from atomscope.errors import InvalidInput, NothingToAudit
from atomscope.types.spec import AuditConfig
from atomscope_workers.local import InProcess, run_local
from atomscope_workers.stages.sizes import Shapes, bundle_bytes
from tests.fixtures.corpus import write_corpus

CONFIG = AuditConfig(shard_documents=16, token_budget=256, components=6, n_atoms=8, dtype="float32")


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, plain_adapter: Path) -> LocalRun:
    folder = tmp_path_factory.mktemp("estimate")
    return LocalRun(
        base_model=tiny_llama,
        adapter=plain_adapter,
        dataset=write_corpus(folder / "data.jsonl", 40),
        out=folder / "bundle",
        config=CONFIG,
    )


@pytest.fixture(scope="module")
def estimate(wanted: LocalRun) -> Estimate:
    return InProcess().estimate(wanted)


@pytest.fixture(scope="module")
def bundle(wanted: LocalRun, estimate: Estimate) -> Path:
    """The audit itself, run after its estimate."""
    return run_local(wanted, lambda stage, progress: None)


def test_it_leaves_nothing_where_the_bundle_would_be(wanted: LocalRun, tmp_path: Path) -> None:
    InProcess().estimate(msgspec.structs.replace(wanted, out=tmp_path / "bundle"))
    assert list(tmp_path.iterdir()) == []


def test_it_counts_what_the_audit_will_count(estimate: Estimate, bundle: Path) -> None:
    audited = open_bundle(bundle)
    assert estimate.documents == audited.report.n_documents
    assert estimate.tokens == sum(record.n_tokens for record in audited.documents.values())
    assert estimate.shards == 3


def test_the_bytes_of_every_array_are_those_of_the_bundle_but_for_headers(
    estimate: Estimate, bundle: Path
) -> None:
    def size(folder: str) -> int:
        return sum(path.stat().st_size for path in (bundle / folder).iterdir() if path.suffix != ".json")

    assert estimate.details["gradient_bytes"] == pytest.approx(size("gradients"), rel=0.02, abs=4096)
    arrays = (path for path in bundle.rglob("*") if path.is_file() and path.suffix != ".json")
    # Atoms that are dropped have no vector; JSON is not counted: beside a real audit's arrays it is small.
    assert estimate.bundle_bytes == pytest.approx(sum(path.stat().st_size for path in arrays), rel=0.25)


def test_time_and_memory_are_given_by_stage_and_are_not_nothing(estimate: Estimate) -> None:
    stages = estimate.details["seconds_by_stage"]
    assert set(stages) == {
        "validate", "extract", "eigenbases", "lambdas", "project", "dictionary", "evidence", "combine"
    }  # fmt: skip
    assert estimate.seconds > 0
    assert estimate.memory_bytes > 50 * 2**20  # a process with torch in it


def test_gradient_bytes_grow_with_documents_and_parameters_and_nothing_else() -> None:
    parameters = {"a": (4, 10), "b": (6, 4)}
    one = Shapes(documents=1, parameters=parameters, groups={"a": "a", "b": "b"}, atoms=2, components=30)
    many = Shapes(documents=7, parameters=parameters, groups={"a": "a", "b": "b"}, atoms=9, components=3)
    assert one.gradient == 64
    assert one.whitened == 30 + 24
    assert bundle_bytes(one)["gradients"] == 4 * 64
    assert bundle_bytes(many)["gradients"] == 7 * bundle_bytes(one)["gradients"]


def test_modules_that_share_an_input_share_its_eigenbasis() -> None:
    parameters = {"q": (4, 10), "v": (4, 10)}
    shared = Shapes(documents=1, parameters=parameters, groups={"q": "q", "v": "q"}, atoms=1, components=1)
    apart = Shapes(documents=1, parameters=parameters, groups={"q": "q", "v": "v"}, atoms=1, components=1)
    assert sorted(shared.bases) == [4, 4, 10]
    assert sorted(apart.bases) == [4, 4, 10, 10]


def test_bad_input_is_refused_as_by_the_audit(wanted: LocalRun, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": 1}\n', encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"bad\.jsonl"):
        InProcess().estimate(msgspec.structs.replace(wanted, dataset=bad))
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(NothingToAudit):
        InProcess().estimate(msgspec.structs.replace(wanted, dataset=empty))
