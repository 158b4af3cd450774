"""The key of a shard follows from all that decides its gradients, and from nothing else."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from atomscope.types.bundle import StoredShard
from atomscope.types.spec import AuditConfig, AuditSpec
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.pipeline.storage import GradientDtype
from atomscope_workers.stages import shard_keys
from atomscope_workers.stages.context import KnownShard
from atomscope_workers.stages.shard_keys import KnownRuns, extraction_context, extractions_of, shard_name
from tests.workers.stages.units import a_spec

DOCUMENTS = [3, 5]
BATCHES = [[5, 3]]


def tokens(ids: list[int] | None = None, mask: list[bool] | None = None) -> dict[int, TokenizedDocument]:
    found = {
        3: TokenizedDocument(3, np.array(ids or [1, 2], dtype=np.int32), np.array(mask or [False, True])),
        5: TokenizedDocument(5, np.array([4, 5, 6], dtype=np.int32), np.array([False, True, True])),
    }
    return found


def name(
    spec: AuditSpec | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    stored: GradientDtype = "float32",
    **changed: Any,
) -> str:
    given: dict[str, Any] = {"documents": DOCUMENTS, "batches": BATCHES, "tokens": tokens()} | changed
    return shard_name(extraction_context(spec or a_spec(), dtype, device, stored), **given)


def test_settings_of_the_fit_leave_it_as_it_is() -> None:
    other = AuditConfig(n_atoms=7, alpha=0.3, seed=9, preconditioner="kfac", damping=0.5, fits=1)
    assert name(a_spec(other)) == name()
    assert name().startswith("0000000003-000002-")


def test_whatever_decides_the_gradients_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = a_spec()
    others = {
        name(),
        name(_with(spec, "base_model")),
        name(_with(spec, "adapter")),
        name(dtype="bfloat16"),
        name(device="cuda"),
        name(stored="bfloat16"),
        name(stored="float16"),
        name(batches=[[3, 5]]),
        name(batches=[[3], [5]]),
        name(tokens=tokens(ids=[1, 3])),
        name(tokens=tokens(mask=[True, True])),
        name(documents=[3], batches=[[3]]),
        name(documents=[5], batches=[[5]]),
    }
    assert len(others) == 13
    assert name(_with(spec, "dataset")) == name()  # its content is in the documents
    monkeypatch.setattr(shard_keys, "software_versions", lambda: {"torch": "0.1"})
    assert name() not in others


def _with(spec: AuditSpec, field: str) -> AuditSpec:
    return msgspec.structs.replace(
        spec, **{field: msgspec.structs.replace(getattr(spec, field), sha256="f" * 64)}
    )


def test_known_shards_are_found_by_key_and_odd_names_passed_over() -> None:
    context = extraction_context(a_spec(), "float32", "cpu", "float32")
    there = "projects/prj_1/extractions/aud_1/x/f1/"
    known = [KnownShard(name=name(), location=there), KnownShard(name="odd", location="elsewhere/")]
    runs = KnownRuns(context, tokens(), known)
    assert (list(runs.counts(3)), list(runs.counts(5))) == ([2], [])
    assert runs.holds(DOCUMENTS, BATCHES)
    assert not runs.holds([3], [[3]])
    found = [runs.stored(DOCUMENTS, BATCHES), runs.stored([3], [[3]])]
    assert [shard.location for shard in found] == [there, None]
    assert extractions_of(found) == ["", "aud_1"]
    on_one_machine = StoredShard(name="n", location="/home/someone/shards/extractions/n")
    assert extractions_of([on_one_machine, *found]) == ["", "aud_1"]
    with pytest.raises(ValueError, match="is not the key of an extraction"):
        extractions_of([StoredShard(name="n", location="projects/prj_1/elsewhere/aud_1/x/f1/")])
