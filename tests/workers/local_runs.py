"""Local audits of the tiny model: small settings, a record of their progress, and what they leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from atomscope.bundle import Bundle, layout
from atomscope.cli.registry import LocalRefit, LocalRun
from atomscope.errors import BundleError, InvalidInput
from atomscope.types.attribution import AttributionQuery
from atomscope.types.resources import Progress
from atomscope.types.spec import AuditConfig
from atomscope.types.work import Stage
from atomscope_workers.local import InProcess, refit_local, run_local

SMALL = AuditConfig(
    dtype="float32",
    shard_documents=8,
    token_budget=128,
    components=4,
    n_atoms=4,
    alpha=0.3,
    min_active=2,
    top_documents=4,
    fits=2,
    surrogates=1,
)
"""Several micro-batches a shard; float32, since `auto` asks the clock."""


@dataclass(frozen=True)
class Told:
    """One call of `on_progress`."""

    stage: Stage
    done: int
    total: int
    unit: str


@dataclass
class Recorder:
    """An `on_progress` that keeps what it is told and interrupts where `stop` says so."""

    stop: Callable[[Told], bool] = lambda told: False
    told: list[Told] = field(default_factory=list[Told])

    def __call__(self, stage: Stage, progress: Progress) -> None:
        told = Told(stage, progress.done, progress.total, progress.unit)
        self.told.append(told)
        if self.stop(told):
            raise KeyboardInterrupt

    def of(self, stage: Stage) -> list[tuple[int, int]]:
        """`(done, total)` as told of one stage, in order."""
        return [(told.done, told.total) for told in self.told if told.stage == stage]


def quiet(stage: Stage, progress: Progress) -> None:
    """An `on_progress` for audits whose progress is not looked at."""


def request(base: Path, adapter: Path, dataset: Path, out: Path, config: AuditConfig = SMALL) -> LocalRun:
    return LocalRun(base_model=base, adapter=adapter, dataset=dataset, out=out, config=config)


def run(asked: LocalRun, on_progress: Callable[[Stage, Progress], None] = quiet) -> Path:
    return run_local(asked, on_progress)


def refit(
    source: Path, out: Path, *, base_model: Path | None = None, preset: str | None = None, **settings: Any
) -> Path:
    """A refit of a bundle or of work under way."""
    asked = LocalRefit(source=str(source), out=out, base_model=base_model, preset=preset, settings=settings)
    return refit_local(asked, quiet)


def check_that_only_codes_compare(bundle: Bundle) -> None:
    """Of an audit without gradients: they are not read, nor documents ranked by them, and it says why."""
    told = f"`gradients: {bundle.spec.config.gradients}`"
    with pytest.raises(BundleError, match=told):
        next(bundle.gradients())
    base = Path(bundle.spec.base_model.location)
    query = AttributionQuery(prompt="a", completion="b", exact=True)
    with pytest.raises(InvalidInput, match=told) as refused:
        InProcess().attribute(bundle, base, query, lambda progress: None)
    assert refused.value.code == "gradients_not_kept"
    by_codes = msgspec.structs.replace(query, exact=False)
    assert not InProcess().attribute(bundle, base, by_codes, lambda progress: None).exact


def contents(bundle: Path) -> dict[str, bytes]:
    """Every file of a bundle by path; of the manifest, all but the time at which it was made."""
    files = {
        path.relative_to(bundle).as_posix(): path.read_bytes()
        for path in sorted(bundle.rglob("*"))
        if path.is_file()
    }
    manifest: dict[str, Any] = msgspec.json.decode(files[layout.MANIFEST])
    del manifest["created_at"]
    files[layout.MANIFEST] = msgspec.json.encode(manifest)
    return files


def partial(out: Path) -> Path:
    """The work folder of an output."""
    return out.with_name(f"{out.name}.partial")


def finished(out: Path) -> list[str]:
    """Units that left a marker in the work folder, sorted."""
    return sorted(path.stem for path in (partial(out) / "units").glob("*.json"))
