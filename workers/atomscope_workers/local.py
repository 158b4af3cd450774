"""The local driver: one audit in this process, from paths to a bundle, resumed where it was stopped.

The work lies beside the output, in `OUT.partial`, until the bundle is moved to `OUT` in one step. A unit that
finished leaves a marker; the same inputs and settings go on at the first one that is missing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from atomscope.bundle import Bundle, layout, open_bundle
from atomscope.cli.registry import Estimate, LocalRefit, LocalRun
from atomscope.errors import BundleError, InvalidInput
from atomscope.store import LocalStore
from atomscope.types.attribution import AttributionQuery, AttributionResult
from atomscope.types.bundle import StoredShard
from atomscope.types.evaluation import EvaluationQuery, EvaluationResult
from atomscope.types.resources import Progress
from atomscope.types.spec import AuditSpec, ParentRef
from atomscope.types.work import FAN_OUT, STAGES, Stage, unit_count
from atomscope_workers.attribution import attribute
from atomscope_workers.estimate import estimate_audit
from atomscope_workers.evaluation import evaluate
from atomscope_workers.local_context import LocalContext
from atomscope_workers.local_inputs import local_spec
from atomscope_workers.local_refit import open_source, refit_spec, source_held
from atomscope_workers.opened_audit import OnSteps, OpenedAudit
from atomscope_workers.shard_cache import ShardCache
from atomscope_workers.stages.assemble import assemble_bundle
from atomscope_workers.stages.context import Parent, UnitResult
from atomscope_workers.stages.registry import STAGE_FUNCTIONS
from atomscope_workers.stages.retention import keeps_gradients
from atomscope_workers.stages.shard_keys import VERSION
from atomscope_workers.stages.versions import software_versions
from atomscope_workers.work_folder import FILES, UNITS, claim, held, is_work_of, work_folder

OnProgress = Callable[[Stage, Progress], None]


class _Marker(msgspec.Struct, kw_only=True):
    """What a finished unit leaves."""

    paths: list[str]
    result: UnitResult


@dataclass(frozen=True)
class _Work:
    """An audit and the folder of its work: units' outputs under `files`, their markers under `units`."""

    spec: AuditSpec
    folder: Path
    on_progress: OnProgress
    parent: Parent | None = None
    cache: ShardCache | None = None

    @property
    def files(self) -> Path:
        return self.folder / FILES

    def documents(self) -> int:
        """Documents of the plan; 0 before there is one."""
        plan = self.files / layout.PLAN
        if not plan.is_file():
            return 0
        found: Mapping[str, object] = msgspec.json.decode(plan.read_bytes())
        count = found["n_documents"]
        return count if isinstance(count, int) else 0

    def stored(self) -> list[StoredShard]:
        """Where the shards of the plan lie."""
        return msgspec.json.decode((self.files / layout.SHARDS).read_bytes(), type=list[StoredShard])


@dataclass
class _Tally:
    """Counts of a stage over the units that have finished."""

    before: int = 0


def run_local(request: LocalRun, on_progress: OnProgress) -> Path:
    """Audit the paths of `request`; the folder of the bundle.

    A bundle of the same inputs and settings that is there already is returned at once. Raises `InvalidInput`
    (`NothingToAudit`) as the stages do, when the output folder holds something else, when another process
    is at the same work, for a cache that cannot be used, and as its `take` does.
    """
    spec = local_spec(request)
    return _run(spec, request.out, on_progress, _cache(request, spec))


def refit_local(request: LocalRefit, on_progress: OnProgress) -> Path:
    """Fit an audit's stored gradients under other settings; the folder of the new bundle.

    Raises `BundleError` for a bundle that is missing, damaged or of another format; `InvalidInput` as the
    stages do, and as `refit_spec` does.
    """
    with source_held(request.source):
        return _run(refit_spec(request), request.out, on_progress)


def _cache(request: LocalRun, spec: AuditSpec) -> ShardCache | None:
    """The shards that an audit may take and is to keep; raises `InvalidInput` where it could do neither."""
    if request.shard_cache is None:
        return None
    if not keeps_gradients(spec.config):
        raise InvalidInput(
            "bad_setting",
            f"--shard-cache keeps what is extracted, and `gradients: {spec.config.gradients}` does not: "
            "leave one of them out",
        )
    cache = ShardCache(request.shard_cache)
    out = _output(request.out)
    if cache.lies_in(out) or cache.lies_in(work_folder(out)):
        raise InvalidInput(
            "bad_path", f"the cache {request.shard_cache} lies in the folder of the bundle, {out}"
        )
    return cache


def _output(asked: Path) -> Path:
    out = asked.expanduser().absolute()
    # A folder cannot be moved onto a link.
    return out.resolve() if out.is_symlink() else out


def _run(spec: AuditSpec, asked: Path, on_progress: OnProgress, cache: ShardCache | None = None) -> Path:
    out = _output(asked)
    work = work_folder(out)
    # Shards of two versions of the software are not the shards of one audit.
    stamp = f"{spec.audit_id} {VERSION} {msgspec.json.encode(software_versions()).decode()}"
    if _holds(out, spec) and not is_work_of(work, stamp):
        return out
    with held(work):
        if not _holds(out, spec):
            claim(work, stamp)
            try:
                parent = open_source(spec.parent.location) if isinstance(spec.parent, ParentRef) else None
                _audit(_Work(spec, work, on_progress, parent, cache), out)
            except InvalidInput:
                if not any((work / UNITS).glob("*.json")):
                    shutil.rmtree(work)  # nothing was done that another try could go on from
                raise
        shutil.rmtree(work)
    return out


def _audit(work: _Work, out: Path) -> None:
    """Run the units that have not finished, put the bundle together and move it to `out`."""
    spec, shards, planned = work.spec, 0, dict[Stage, int]()
    if work.cache is not None:
        work.cache.open()
    for stage in STAGES:
        tally = _Tally()
        for index in range(unit_count(stage, shards, planned)):
            marker = _run_unit(work, stage, index, shards, tally)
            if marker.result.shards is not None:
                shards, planned = marker.result.shards, marker.result.summary["units"]
                tally = _Tally()
            if stage == "extract" and work.cache is not None:
                work.cache.put(work.stored()[index], index, work.files)
    sources = {item.key: f"{FILES}/{item.key}" for item in LocalStore(work.files).list("")}
    named = spec.parent.audit_id if isinstance(spec.parent, ParentRef) else None
    assemble_bundle(
        LocalStore(work.folder),
        sources,
        "bundle/",
        spec.audit_id,
        keeps_gradients=keeps_gradients(spec.config),
        parent=named,
    )
    if out.exists():
        out.rmdir()  # empty, or `_holds` had refused it
    (work.folder / "bundle").rename(out)


def _holds(out: Path, spec: AuditSpec) -> bool:
    """Whether `out` holds this audit's bundle; raises `InvalidInput` when it holds anything else."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise InvalidInput("bad_path", f"{out} is a file: --out names the folder to be made")
    if not any(out.iterdir()):
        if out.is_mount():  # it could not be replaced by the bundle in the end
            raise InvalidInput("bad_path", f"{out} is a mount point: give a folder below it")
        return False
    try:
        if open_bundle(out).manifest.audit_id == spec.audit_id:
            return True
    except BundleError as error:
        raise InvalidInput("bad_path", f"{out} exists and is not an audit bundle: {error}") from error
    raise InvalidInput("bad_path", f"{out} holds the bundle of another audit: give another --out")


def _run_unit(work: _Work, stage: Stage, index: int, shards: int, tally: _Tally) -> _Marker:
    path = work.folder / UNITS / f"{stage}-{index:04d}.json"
    counted = _Counted(tally, stage, work.documents(), work.on_progress)
    if path.is_file():
        marker = msgspec.json.decode(path.read_bytes(), type=_Marker)
        counted.skip(marker.result.documents or 0)
        return marker
    if stage == STAGES[0] and work.files.exists():
        shutil.rmtree(work.files)  # shards of a plan that was not finished, and may not be made again
    with tempfile.TemporaryDirectory(prefix="unit-", dir=work.folder) as scratch:
        ctx = LocalContext(
            spec=work.spec,
            stage=stage,
            index=index,
            shards=shards,
            scratch=Path(scratch),
            work=work.folder,
            tell=counted.tell,
            parent=work.parent,
            cache=work.cache,
        )
        result = STAGE_FUNCTIONS[stage](ctx)
    if stage == "validate" and work.cache is not None:
        work.cache.take(work.stored(), work.files)  # before the marker: from then on the audit counts on them
    counted.finish()
    marker = _Marker(paths=ctx.written, result=result)
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.encode(marker))
    temporary.replace(path)
    return marker


class _Counted:
    """Adds a unit's counts to those of the units before it."""

    def __init__(self, tally: _Tally, stage: Stage, documents: int, on_progress: OnProgress) -> None:
        self._tally = tally
        self._stage: Stage = stage
        self._documents = documents if stage in FAN_OUT else 0
        self._on_progress = on_progress
        self._done = 0

    def tell(self, done: int, total: int, unit: str) -> None:
        self._done = done
        whole = self._documents or total
        self._on_progress(self._stage, Progress(done=self._tally.before + done, total=whole, unit=unit))

    def skip(self, documents: int) -> None:
        """Count a unit that an earlier run finished."""
        self._tally.before += documents

    def finish(self) -> None:
        self._tally.before += self._done


class InProcess:
    """The `LocalRunner` of `atomscope audit run --local`."""

    def run(self, request: LocalRun, on_progress: OnProgress) -> Path:
        return run_local(request, on_progress)

    def refit(self, request: LocalRefit, on_progress: OnProgress) -> Path:
        return refit_local(request, on_progress)

    def estimate(self, request: LocalRun) -> Estimate:
        spec = local_spec(request)
        return estimate_audit(spec, partial(_validating, request.out, _cache(request, spec)))

    def attribute(
        self, bundle: Bundle, base_model: Path, query: AttributionQuery, on_progress: OnSteps
    ) -> AttributionResult:
        return attribute(OpenedAudit(bundle, base_model, on_progress), query)

    def evaluate(
        self, bundle: Bundle, base_model: Path, query: EvaluationQuery, on_progress: OnSteps
    ) -> EvaluationResult:
        return evaluate(OpenedAudit(bundle, base_model, on_progress), query)


def _validating(out: Path, cache: ShardCache | None, spec: AuditSpec, work: Path) -> LocalContext:
    """The context of `validate` alone, its files under `work`, of an audit whose bundle would be `out`."""
    scratch = work / "scratch"
    scratch.mkdir()
    return LocalContext(
        spec=spec,
        stage="validate",
        index=0,
        shards=0,
        scratch=scratch,
        work=work,
        tell=lambda done, total, unit: None,
        cache=cache,
        out=out.expanduser().absolute(),
    )
