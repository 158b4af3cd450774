"""A unit's view of stored shards: under the winner's fence, committed last, referred to by key."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from atomscope.bundle import layout
from atomscope.store import LocalStore, ObjectStore
from atomscope.types.bundle import StoredShard
from atomscope.types.spec import AuditSpec
from atomscope.types.work import Stage, UnitOrder
from atomscope_workers.celery_context import StoreContext
from atomscope_workers.stages.context import KnownShard
from tests.workers.stages.units import a_spec

WORK = "projects/prj_1/audits/aud_1/a1/"
OWN = "projects/prj_1/extractions/aud_1/"
OTHER = "projects/prj_1/extractions/aud_0/elder/f3/"
SPEC = msgspec.structs.replace(
    a_spec(), audit_id="aud_1", project_id="prj_1", extractions=[OWN, "projects/prj_1/extractions/aud_0/"]
)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """Two shards: one that another audit stored, and one that this audit extracts."""
    made = LocalStore(tmp_path / "store")
    made.put_bytes(f"{WORK}spec.json", msgspec.json.encode(SPEC))
    shards = [StoredShard(name="elder", location=OTHER), StoredShard(name="mine")]
    prefix = layout.unit_prefix(WORK, "validate", 0, 1)
    made.put_bytes(f"{prefix}{layout.SHARDS}", msgspec.json.encode(shards))
    made.put_bytes(f"{OTHER}gradients.safetensors", b"elder")
    return made


def context(
    store: ObjectStore, folder: Path, stage: Stage, index: int = 0, fence: int = 1, **winners: list[int]
) -> StoreContext:
    order = UnitOrder(
        project_id="prj_1", audit_id="aud_1", attempt=1, unit_id="unt_1", stage=stage,
        index=index, fence=fence,
        work_prefix=WORK, spec_key=f"{WORK}spec.json", winners={"validate": [1], **winners},
        heartbeat_seconds=1.0,
    )  # fmt: skip
    scratch = folder / f"{stage}-{index}-{fence}"
    scratch.mkdir()
    return StoreContext(store, order, scratch, lambda done, total, unit: None, lambda: None)


def extracted(store: LocalStore, folder: Path, fence: int, content: bytes, *, commit: bool = True) -> None:
    ctx = context(store, folder, "extract", 1, fence)
    ctx.write_bytes(layout.gradient_shard(1), content)
    ctx.write_bytes(layout.shard_losses(1), b"losses")
    ctx.write_bytes("gradients/0001.json", b"{}")
    assert not store.exists(f"{OWN}mine/f{fence}/{layout.ENTRY}")
    if commit:
        ctx.commit()


def test_later_units_read_the_winners_shard_and_that_of_the_other_audit(
    store: LocalStore, tmp_path: Path
) -> None:
    extracted(store, tmp_path, 1, b"lost")
    extracted(store, tmp_path, 2, b"won")
    ctx = context(store, tmp_path, "curvature", extract=[1, 2])
    assert ctx.read(layout.gradient_shard(0)).read_bytes() == b"elder"
    assert ctx.read(layout.gradient_shard(1)).read_bytes() == b"won"
    assert [ctx.read_range(layout.gradient_shard(index), 0, 2) for index in (0, 1)] == [b"el", b"wo"]
    assert ctx.read(layout.shard_losses(1)).read_bytes() == b"losses"
    assert ctx.read("gradients/0001.json").read_bytes() == b"{}"
    assert ctx.sources()[layout.gradient_shard(1)] == f"{OWN}mine/f2/gradients.safetensors"


def test_the_bundle_refers_to_gradients_by_the_size_and_digest_of_their_entry(
    store: LocalStore, tmp_path: Path
) -> None:
    extracted(store, tmp_path, 2, b"won")
    files = {"gradients.safetensors": {"size": 5, "sha256": "a" * 64}}
    store.put_bytes(f"{OTHER}{layout.ENTRY}", msgspec.json.encode({"files": files}))
    shared = context(store, tmp_path, "report", extract=[1, 2]).shared()
    assert [(entry.path, entry.size) for entry in shared.values()] == [
        (layout.gradient_shard(0), 5),
        (layout.gradient_shard(1), 3),
    ]
    assert shared[layout.gradient_shard(0)].sha256 == "a" * 64


def test_an_audit_that_keeps_no_gradients_stores_no_shard_and_refers_to_none(
    store: LocalStore, tmp_path: Path
) -> None:
    """Its gradients lie with its other work, which is removed when it ends."""
    prefix = layout.unit_prefix(WORK, "validate", 0, 1)
    store.put_bytes(f"{prefix}{layout.SHARDS}", b"[]")
    store.put_bytes(f"{prefix}{layout.PLAN}", b"{}")
    for index, fence in ((0, 1), (1, 2)):
        ctx = context(store, tmp_path, "extract", index, fence)
        ctx.write_bytes(layout.gradient_shard(index), b"gradients")
        ctx.commit()
    ctx = context(store, tmp_path, "curvature", extract=[1, 2])
    own = layout.unit_prefix(WORK, "extract", 1, 2)
    assert ctx.sources()[layout.gradient_shard(1)] == f"{own}{layout.gradient_shard(1)}"
    assert ctx.read(layout.gradient_shard(0)).read_bytes() == b"gradients"
    assert context(store, tmp_path, "report", extract=[1, 2]).shared() == {}
    assert not list(store.list(OWN))


def test_only_committed_shards_of_the_extractions_it_may_use_are_known(
    store: LocalStore, tmp_path: Path
) -> None:
    extracted(store, tmp_path, 1, b"begun", commit=False)
    extracted(store, tmp_path, 2, b"won")
    store.put_bytes(f"projects/prj_1/extractions/aud_9/x/f1/{layout.ENTRY}", b"{}")
    known = context(store, tmp_path, "validate").known_shards()
    assert known == [KnownShard(name="mine", location=f"{OWN}mine/f2/")]
    spec: AuditSpec = msgspec.structs.replace(SPEC, extractions=msgspec.UNSET)
    store.put_bytes(f"{WORK}spec.json", msgspec.json.encode(spec))
    assert context(store, tmp_path, "validate", fence=2).known_shards() == []


def test_what_a_shard_reads_is_found_without_a_listing(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose length, and so whose cost, is that of all shards together."""
    extracted(store, tmp_path, 2, b"won")
    prefix = layout.unit_prefix(WORK, "validate", 0, 1)
    store.put_bytes(f"{prefix}{layout.shard_tokens(1)}", b"tokens")
    store.put_bytes(f"{layout.unit_prefix(WORK, 'curvature', 0, 1)}{layout.CURVATURE}", b"curvature")

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is to be listed")

    monkeypatch.setattr(LocalStore, "list", refuse)
    own = context(store, tmp_path, "extract", 1, 3)
    assert own.read(layout.shard_tokens(1)).read_bytes() == b"tokens"
    later = context(store, tmp_path, "project", 1, extract=[1, 2], curvature=[1])
    assert later.read(layout.CURVATURE).read_bytes() == b"curvature"
    assert later.read(layout.gradient_shard(1)).read_bytes() == b"won"
    assert later.read(layout.factor_sums(1)).name == "factors.safetensors"
    assert later.read_range(layout.gradient_shard(1), 1, 2) == b"on"
