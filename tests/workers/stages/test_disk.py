"""Gradients that certainly do not fit the disk are told of before the first is written."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atomscope.errors import InvalidInput
from atomscope.types.bundle import StoredShard
from atomscope.types.spec import AuditConfig
from atomscope.types.work import Stage
from atomscope_workers.local import InProcess
from atomscope_workers.pipeline.plan import make_plan
from atomscope_workers.stages import disk
from atomscope_workers.stages.disk import require_disk
from tests.fixtures.corpus import write_corpus
from tests.workers.local_runs import partial, request, run
from tests.workers.stages.units import a_spec

DOCUMENTS = 10
PARAMETERS = 1000
MODULES = 3
DISKS = {"scratch": Path("/scratch"), "outputs": Path("/outputs")}


@dataclass
class Unit:
    """As much of a unit's context as is looked at."""

    outputs_folder: Path | None
    config: AuditConfig = field(default_factory=AuditConfig)
    scratch: Path = DISKS["scratch"]
    copies_outputs: bool = True
    parent: None = None
    shard_cache: Path | None = None

    @property
    def spec(self) -> Any:
        return a_spec(self.config)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[Path, int]:
    """Bytes free in each folder; there is none in any other."""
    found: dict[Path, int] = {}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=found.get(path, 0)))
    monkeypatch.setattr(disk, "_existing", lambda folder: folder)
    monkeypatch.setattr(disk, "_one_disk", lambda one, other: one.parent == other.parent != Path("/"))
    return found


def check(
    unit: Unit, stored: list[str | None], *, dtype: Any = "float32", units: dict[Stage, int] | None = None
) -> None:
    lengths = dict.fromkeys(range(DOCUMENTS), 8)
    plan = make_plan(
        lengths, lengths, n_rows=DOCUMENTS, token_budget=16, shard_documents=4, compute_dtype="float32",
        device_kind="cpu", gradient_dtype=dtype,
    )  # fmt: skip
    assert [len(shard.documents) for shard in plan.shards] == [4, 4, 2]
    shards = [StoredShard(name=str(place), location=at) for place, at in enumerate(stored)]
    require_disk(unit, plan, shards, PARAMETERS, MODULES, units or {})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("outputs", "config", "stored", "dtype", "needed"),
    [
        ("outputs", {}, [], "float32", 10 * 4 * PARAMETERS),
        ("outputs", {}, [], "float16", 10 * (2 * PARAMETERS + 4 * MODULES)),
        ("outputs", {}, ["there/", None, "there/"], "float32", 4 * 4 * PARAMETERS),
        (None, {}, [None, None, None], "float32", 10 * 4 * PARAMETERS),
        (None, {"preconditioner": "ekfac"}, [None, None, None], "float32", 10 * 4 * PARAMETERS),
        (None, {}, ["there/", None, None], "float32", 10 * 4 * PARAMETERS),
        (None, {"exact_documents": 5}, [None, None, None], "float32", 4 * 4 * PARAMETERS),
    ],
    ids=["all", "half as large", "what is new", "exact", "components", "of others too", "a shard at a time"],
)
def test_what_the_disk_must_hold_is_compared_with_what_is_free_there(
    free: dict[Path, int],
    outputs: str | None,
    config: dict[str, Any],
    stored: list[str | None],
    dtype: str,
    needed: int,
) -> None:
    unit = Unit(DISKS[outputs] if outputs else None, AuditConfig(**config))
    free[unit.scratch] = 10**9
    free[DISKS[outputs or "scratch"]] = needed
    check(unit, stored, dtype=dtype)
    free[DISKS[outputs or "scratch"]] = needed - 1
    with pytest.raises(InvalidInput, match=f"in {dtype}, and .* free where they are written") as caught:
        check(unit, stored, dtype=dtype)
    assert caught.value.code == "not_enough_disk"
    assert ("`gradients: float16`" in caught.value.detail) == (dtype == "float32")


def test_a_shard_lies_in_the_scratch_before_it_lies_in_a_store_on_the_same_machine(
    free: dict[Path, int],
) -> None:
    unit = Unit(DISKS["outputs"])
    free.update({DISKS["outputs"]: 10**9, unit.scratch: 4 * 4 * PARAMETERS - 1})
    with pytest.raises(InvalidInput, match="the gradients of 4 documents"):
        check(unit, [])
    check(unit, ["there/"] * 3)  # nothing is extracted
    unit.copies_outputs = False
    check(unit, [])


def test_on_one_disk_a_shard_lies_beside_the_store_while_it_is_copied(free: dict[Path, int]) -> None:
    one = Unit(Path("/one/outputs"), scratch=Path("/one/scratch"))
    other = Unit(Path("/one/outputs"), scratch=Path("/one/scratch"), copies_outputs=False)
    free[Path("/one/outputs")] = 12 * 4 * PARAMETERS
    check(one, [])
    free[Path("/one/outputs")] -= 1
    check(other, [])
    with pytest.raises(InvalidInput, match="the gradients of 12 documents"):
        check(one, [])


def test_products_with_directions_take_room_too_where_they_stay(free: dict[Path, int]) -> None:
    unit = Unit(DISKS["outputs"], AuditConfig(exact_documents=5, directions=2), copies_outputs=False)
    units: dict[Stage, int] = {"along": 2, "along_again": 3}
    free[DISKS["outputs"]] = 4 * DOCUMENTS * PARAMETERS + 5 * 4 * DOCUMENTS * 2
    check(unit, [None, None, None], units=units)
    free[DISKS["outputs"]] -= 1
    with pytest.raises(
        InvalidInput, match=r"products with directions take 0.00 MiB, .*fewer `directions`"
    ) as caught:
        check(unit, [None, None, None], units=units)
    assert caught.value.code == "not_enough_disk"
    check(unit, [None, None, None], units={"along": 0, "along_again": 0})
    free[DISKS["outputs"]] = 5 * 4 * DOCUMENTS * 2 - 1
    with pytest.raises(InvalidInput, match=r"^products .* are free where they are written") as caught:
        check(unit, ["there/"] * 3, units=units)
    assert caught.value.detail.endswith("What helps: more room, fewer `directions`")
    unit.outputs_folder = None
    free[unit.scratch] = 4 * 4 * PARAMETERS  # of a shard at a time
    check(unit, [None, None, None], units=units)


def test_who_keeps_no_gradients_is_not_told_to_keep_smaller_ones(free: dict[Path, int]) -> None:
    with pytest.raises(InvalidInput) as caught:
        check(Unit(DISKS["outputs"], AuditConfig(gradients="none")), [])
    assert "`gradients" not in caught.value.detail


def test_a_folder_that_is_to_be_made_lies_on_the_disk_of_the_one_above(tmp_path: Path) -> None:
    assert disk._existing(tmp_path / "a" / "b") == tmp_path


def test_a_local_audit_without_room_is_refused_before_a_gradient_is_written(
    tiny_llama: Path, plain_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    asked = request(tiny_llama, plain_adapter, write_corpus(tmp_path / "a.jsonl", 4), tmp_path / "out")
    for ask in (run, InProcess().estimate):
        with pytest.raises(InvalidInput, match="the gradients of 4 documents take") as caught:
            ask(asked)
        assert caught.value.code == "not_enough_disk"
    assert not (tmp_path / "out").exists()
    assert not list(partial(tmp_path / "out").rglob("gradients/*"))


def test_an_estimate_asks_of_the_bundle_s_disk_and_of_no_other(
    tiny_llama: Path, plain_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=10**12 if path.is_relative_to(tmp_path) else 0)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    asked = request(tiny_llama, plain_adapter, write_corpus(tmp_path / "a.jsonl", 4), tmp_path / "out")
    assert InProcess().estimate(asked).documents == 4


def test_a_shard_cache_on_another_disk_is_copied_from_and_to(free: dict[Path, int]) -> None:
    unit = Unit(Path("/outputs/here"), copies_outputs=False, shard_cache=Path("/cache/there"))
    stored: list[str | None] = ["/cache/there/x", None, "/cache/there/y"]
    free.update({Path("/outputs/here"): 10 * 4 * PARAMETERS, Path("/cache/there"): 4 * 4 * PARAMETERS})
    check(unit, stored)
    for folder, documents in (("/outputs/here", 10), ("/cache/there", 4)):
        free[Path(folder)] -= 1
        with pytest.raises(InvalidInput, match=f"the gradients of {documents} documents"):
            check(unit, stored)
        free[Path(folder)] += 1


def test_a_shard_cache_on_the_disk_of_the_outputs_takes_no_room(free: dict[Path, int]) -> None:
    unit = Unit(Path("/outputs/here"), copies_outputs=False, shard_cache=Path("/outputs/there"))
    free[Path("/outputs/here")] = 4 * 4 * PARAMETERS
    check(unit, ["/outputs/there/x", None, "/outputs/there/y"])
