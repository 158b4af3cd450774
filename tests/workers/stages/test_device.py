"""Stages work on the device of their plan and store what the CPU would have stored."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from atomscope.bundle import layout
from atomscope.types.spec import AuditConfig
from atomscope.types.work import Stage
from atomscope_workers.stages import inputs
from atomscope_workers.stages.evidence import FOUND
from tests.workers.pipeline.elsewhere import DEVICE, elsewhere
from tests.workers.stages.units import SHAPES, Audit, extracted

STAGES: tuple[Stage, ...] = (
    "eigenbases", "lambdas", "curvature", "project", "directions", "along", "directions_again",
    "along_again", "dictionary", "evidence", "combine",
    "vectors",
)  # fmt: skip
SMALL = AuditConfig(shard_documents=12, n_atoms=4, alpha=0.2, min_active=2, fits=2, surrogates=1)
CONFIGS = {
    "gram": SMALL,
    "directions": msgspec.structs.replace(SMALL, exact_documents=1, sketch_columns=64, directions=10),
    "components": msgspec.structs.replace(SMALL, preconditioner="ekfac", components=8),
}


def _audit(work: Path, config: AuditConfig) -> Audit:
    random = np.random.default_rng(0)
    gradients = {
        name: (
            random.normal(size=(3, *shape))[np.arange(24) % 3] + random.normal(size=(24, *shape)) / 3
        ).astype("f4")
        for name, shape in SHAPES.items()
    }
    return extracted(work, gradients, config, texts=[f"word{item % 3} same" for item in range(24)])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_is_stored_does_not_depend_on_where_the_work_was_done(
    tmp_path: Path, config: AuditConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = _audit(tmp_path / "here", config), _audit(tmp_path / "there", config)
    here.run(*STAGES)
    plan = msgspec.structs.replace(there.plan(), device_kind=DEVICE.type)
    inputs.write_plan(there.context("validate"), plan)
    monkeypatch.setattr(inputs, "choose_device", lambda: DEVICE)
    ran: dict[Stage, int] = {}
    for stage in STAGES:
        with elsewhere() as seen:
            there.run(stage)
        ran[stage] = seen["aten.mm.default"] + seen["aten.bmm.default"]
    paths = [path.relative_to(here.work) for path in (here.work / "files").rglob("*") if path.is_file()]
    assert {layout.DICTIONARY, layout.COEFFICIENTS, FOUND} <= {"/".join(path.parts[1:]) for path in paths}
    differing = {
        str(path) for path in paths if (here.work / path).read_bytes() != (there.work / path).read_bytes()
    }
    plans = [layout.PLAN, *map(layout.shard_plan, range(here.shards))]
    assert differing == {f"files/{path}" for path in plans}
    assert ran["lambdas"] > 0
    assert ran["project"] > 0
    along = [ran[stage] > 0 for stage in ("directions", "along", "along_again")]
    assert along == [config is CONFIGS["directions"]] * 3
    assert ran["evidence"] > ran["dictionary"] > 0
