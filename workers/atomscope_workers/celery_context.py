"""A unit's view of the store: inputs from the winners of earlier stages, outputs under its own fence."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import msgspec

from atomscope.bundle import layout
from atomscope.errors import InvalidInput
from atomscope.input_files import file_digest, folder_digest
from atomscope.store import ObjectNotFound, ObjectStore
from atomscope.types.bundle import Plan
from atomscope.types.spec import AuditSpec, InputRef
from atomscope.types.work import STAGES, Stage, UnitOrder

MAX_ROWS_VARIABLE = "ATOMSCOPE_MAX_ROWS"
CACHE_VARIABLE = "ATOMSCOPE_CACHE"


class UnitRecord(msgspec.Struct, kw_only=True):
    """`unit.json`, written last: the outputs of a unit."""

    paths: list[str]


class StoreContext:
    """A `StageContext` for one order, over an object store."""

    def __init__(
        self,
        store: ObjectStore,
        order: UnitOrder,
        scratch: Path,
        progress: Callable[[int, int, str], None],
        checkpoint: Callable[[], None],
    ) -> None:
        self._store = store
        self._order = order
        self._progress = progress
        self._checkpoint = checkpoint
        self._own = layout.unit_prefix(order.work_prefix, order.stage, order.index, order.fence)
        self._written: list[str] = []
        self._found: dict[Stage, dict[str, str]] = {}
        self._inputs = scratch / "inputs"
        self.scratch = scratch / "outputs"
        self.scratch.mkdir()
        self.spec = msgspec.json.decode(store.get_bytes(order.spec_key), type=AuditSpec)

    @property
    def stage(self) -> Stage:
        return self._order.stage

    @property
    def index(self) -> int:
        return self._order.index

    @property
    def shards(self) -> int:
        return len(self._order.winners.get("extract", [])) or self._planned_shards

    @cached_property
    def _planned_shards(self) -> int:
        if "validate" not in self._order.winners:
            return 0
        return len(msgspec.json.decode(self.read(layout.PLAN).read_bytes(), type=Plan).shards)

    @property
    def max_rows(self) -> int:
        return int(os.environ.get(MAX_ROWS_VARIABLE) or 2_000_000)

    def sources(self) -> dict[str, str]:
        """Bundle path -> key, of every output of the winning units of finished stages."""
        found: dict[str, str] = {}
        for stage in STAGES:
            found |= self._stage_sources(stage)
        return found

    def _stage_sources(self, stage: Stage) -> dict[str, str]:
        """The same of one stage, by one listing; what other fences left there is passed over."""
        if stage not in self._found:
            root = f"{self._order.work_prefix}units/{stage}/"
            fences = self._order.winners.get(stage, [])
            winning = {
                layout.unit_prefix(self._order.work_prefix, stage, index, fence)
                for index, fence in enumerate(fences)
            }
            found: dict[str, str] = {}
            for item in self._store.list(root) if fences else ():
                number, fence, path = item.key.removeprefix(root).split("/", 2)
                if f"{root}{number}/{fence}/" in winning and path != layout.UNIT:
                    found[path] = item.key
            self._found[stage] = found
        return self._found[stage]

    def own_sources(self) -> dict[str, str]:
        """The same for what this unit has written."""
        return {path: self._own + path for path in self._written}

    def input(self, ref: InputRef) -> Path:
        return fetched_input(self._store, ref)

    def read(self, path: str) -> Path:
        key = self._find(path)
        local = self._store.local_path(key)
        if local is not None:
            return local
        target = self._inputs / path
        if not target.exists():
            self._store.get_file(key, target)
        return target

    def _find(self, path: str) -> str:
        # The latest stages first: a unit mostly reads what was written just before it.
        for stage in reversed(STAGES):
            key = self._stage_sources(stage).get(path)
            if key is not None:
                return key
        raise ObjectNotFound(f"no object {path!r}")

    def write(self, path: str, source: Path) -> None:
        self._store.put_file(self._own + path, source)
        self._written.append(path)

    def write_bytes(self, path: str, data: bytes) -> None:
        self._store.put_bytes(self._own + path, data)
        self._written.append(path)

    def outputs(self) -> list[str]:
        return sorted(self.sources())

    def progress(self, done: int, total: int, unit: str) -> None:
        self._progress(done, total, unit)

    def checkpoint(self) -> None:
        self._checkpoint()

    def commit(self) -> None:
        """Write `unit.json`: the outputs are whole."""
        self._store.put_bytes(self._own + layout.UNIT, msgspec.json.encode(UnitRecord(paths=self._written)))


def fetched_input(store: ObjectStore, ref: InputRef) -> Path:
    """An input as a local file or folder.

    Raises `InvalidInput`: `input_missing` when it is not in the store, `input_changed` when it differs.
    """
    local = store.local_path(ref.location)
    if local is None:
        return _fetched(store, ref)
    if not local.exists():
        raise InvalidInput("input_missing", f"{ref.id} is not in the store")
    return local


def _fetched(store: ObjectStore, ref: InputRef) -> Path:
    """The input in a local cache keyed by its digest, fetched once; raises `InvalidInput` if it differs."""
    root = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "atomscope") / "inputs"
    name = ref.location.rsplit("/", 1)[-1]
    # The ending of a data set says how the same bytes are read.
    target = root / (f"{ref.sha256}-{name}" if name else ref.sha256)
    if not target.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".fetch-", dir=root))
        try:
            if name:
                store.get_file(ref.location, scratch / name)
                digest = file_digest(scratch / name)
            else:
                for item in store.list(ref.location):
                    store.get_file(item.key, scratch / item.key.removeprefix(ref.location))
                files = {
                    file.relative_to(scratch).as_posix(): file_digest(file)
                    for file in scratch.rglob("*")
                    if file.is_file()
                }
                digest = folder_digest(files)
            if digest != ref.sha256:
                raise InvalidInput("input_changed", f"{ref.id} is not what it was when the audit was made")
            try:
                scratch.rename(target)
            except OSError:
                if not target.is_dir():  # else another worker was faster
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target / name if name else target
