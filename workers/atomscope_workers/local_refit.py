"""A refit on one machine: its source, a bundle or an audit under way, and the spec that follows."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from atomscope.bundle import layout, open_bundle
from atomscope.cli.registry import LocalRefit
from atomscope.errors import InvalidInput
from atomscope.input_files import folder_digest, is_model_file
from atomscope.text import counted
from atomscope.types.bundle import Plan
from atomscope.types.refits import NeedsExtraction, refit_config
from atomscope.types.spec import AuditSpec, InputRef, ParentRef
from atomscope_workers.local_inputs import LOCAL_PROJECT, adapter_folder, input_folder
from atomscope_workers.opened_audit import ParentAudit
from atomscope_workers.stages.context import Parent
from atomscope_workers.work_folder import FILES, UNITS, held, is_work, work_folder


class WorkUnderWay:
    """The work folder of a local audit whose extraction is done, as the `Parent` of a refit."""

    def __init__(self, work: Path) -> None:
        """Raises `InvalidInput` (`not_extracted`) while shards are missing."""
        self._files = work / FILES
        units = work / UNITS
        if not self.holds(layout.PLAN) or not (units / "validate-0000.json").is_file():
            raise InvalidInput("not_extracted", f"{work}: nothing was extracted yet; run the audit first")
        plan = msgspec.json.decode(self.read(layout.PLAN).read_bytes(), type=Plan)
        done = sum((units / f"extract-{shard.index:04d}.json").is_file() for shard in plan.shards)
        if done < len(plan.shards):
            raise InvalidInput(
                "not_extracted",
                f"{work}: {counted(done, 'shard')} of {len(plan.shards)} extracted: let the audit go on",
            )

    @property
    def spec(self) -> AuditSpec:
        return msgspec.json.decode(self.read(layout.SPEC).read_bytes(), type=AuditSpec)

    @property
    def shared(self) -> Mapping[str, str]:
        """Nothing is shared but by hard links."""
        return {}

    def holds(self, path: str) -> bool:
        return (self._files / path).is_file()

    def read(self, path: str) -> Path:
        """Raises `InvalidInput` (`bundle_damaged`), as a finished parent does."""
        if not self.holds(path):
            raise InvalidInput("bundle_damaged", f"{path} is missing from {self._files}")
        return self._files / path

    def forget(self, path: str) -> None:
        """Nothing is fetched."""


def open_source(source: str) -> Parent:
    """The `Parent` at a bundle's address or folder, or at a work folder.

    Raises `BundleError` when there is neither, `InvalidInput` as `WorkUnderWay` does.
    """
    work = _work(source)
    return ParentAudit(open_bundle(source)) if work is None else WorkUnderWay(work)


@contextmanager
def source_held(source: str) -> Generator[None]:
    """Keep a work folder from being taken up, and then removed, by the audit whose it is."""
    work = _work(source)
    if work is None:
        yield
        return
    with held(work):
        yield


def refit_spec(request: LocalRefit) -> AuditSpec:
    """The spec of a refit; its id follows from the parent's and the settings.

    Raises `InvalidInput`: `needs_extraction` for a setting that only a whole audit can change, `bad_setting`,
    `bad_path` without a base model, `input_changed` for another one, `bundle_damaged` for another adapter.
    """
    location = (
        request.source if "://" in request.source else str(Path(request.source).expanduser().absolute())
    )
    parent = open_source(location)
    other = parent.spec
    try:
        config = refit_config(other.config, request.settings, request.preset)
    except NeedsExtraction as error:
        raise InvalidInput("needs_extraction", str(error)) from error
    except (msgspec.ValidationError, ValueError) as error:
        raise InvalidInput("bad_setting", str(error)) from error
    base = _base(request.base_model, other.base_model)
    for path in (layout.ADAPTER_CONFIG, layout.ADAPTER_WEIGHTS):
        if not parent.holds(path):
            raise InvalidInput(
                "old_bundle", f"{path} is not in the bundle: it was made before there were refits"
            )
        folder = parent.read(path).parent
    if parent.holds(layout.ADAPTER_TEMPLATE):
        parent.read(layout.ADAPTER_TEMPLATE)
    adapter = adapter_folder(folder)
    if adapter.sha256 != other.adapter.sha256:
        raise InvalidInput("bundle_damaged", "the bundle's adapter is not the one that was audited")
    key = folder_digest({"parent": other.audit_id, "config": msgspec.json.encode(config).hex()})
    return AuditSpec(
        audit_id=f"local_{key[:32]}",
        project_id=LOCAL_PROJECT,
        base_model=base,
        adapter=msgspec.structs.replace(adapter, id=other.adapter.id, name=other.adapter.name),
        dataset=other.dataset,
        config=config,
        parent=ParentRef(audit_id=other.audit_id, location=location),
    )


def _work(source: str) -> Path | None:
    """The work folder that `source` names, or the one beside a bundle that is not there yet."""
    if "://" in source:
        return None
    folder = Path(source).expanduser().absolute()
    if is_work(folder) and any(folder.iterdir()):
        return folder
    beside = work_folder(folder)
    return beside if not folder.exists() and is_work(beside) else None


def _base(given: Path | None, audited: InputRef) -> InputRef:
    """The base model, under which the losses of an atom's first documents are measured."""
    path = given
    if path is None:
        path = Path(audited.location)
        if audited.id != "local" or not path.is_dir():
            raise InvalidInput(
                "bad_path",
                "the base model that was audited is not on this machine where it was: "
                "--base-model DIR says where it is",
            )
    found = input_folder(path, "base model", is_model_file)
    if found.sha256 != audited.sha256:
        raise InvalidInput("input_changed", f"{path} is not the base model that was audited")
    return found
