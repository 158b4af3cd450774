"""A unit's view of the store: inputs from the winners of earlier stages, outputs under its own fence."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

import msgspec

from atomscope.bundle import Bundle, layout
from atomscope.errors import InvalidInput
from atomscope.input_files import file_digest, folder_digest
from atomscope.store import ObjectNotFound, ObjectStore
from atomscope.types.bundle import FileEntry, Plan, StoredFile, StoredShard
from atomscope.types.spec import AuditSpec, InputRef, ParentRef
from atomscope.types.work import FAN_OUT, STAGES, Stage, UnitOrder
from atomscope_workers.background import BackgroundCalls
from atomscope_workers.opened_audit import FinishedAudit
from atomscope_workers.stages.context import KnownShard, Parent
from atomscope_workers.worker_cache import cache_folder

MAX_ROWS_VARIABLE = "ATOMSCOPE_MAX_ROWS"
UPLOADS_AT_ONCE = 2
"""Each large file goes in parts, four at a time."""
UPLOADS_WAITING = 8


class UnitRecord(msgspec.Struct, kw_only=True):
    """`unit.json`, written last: the outputs of a unit."""

    paths: list[str]


class Entry(msgspec.Struct, kw_only=True):
    """`entry.json`, written last: the files of a stored shard, by name."""

    files: dict[str, StoredFile]


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
        self._entry: dict[str, StoredFile] = {}
        self._found: dict[Stage, dict[str, str]] = {}
        self._inputs = scratch / "inputs"
        self._outbox = scratch / "outbox"
        self._numbers = itertools.count()
        self._uploads = BackgroundCalls("upload", at_once=UPLOADS_AT_ONCE, waiting=UPLOADS_WAITING)
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

    @cached_property
    def _shards(self) -> list[StoredShard]:
        """Where the shards of the plan lie; none before there is a plan."""
        key = self._direct(layout.SHARDS, ["validate"])
        return [] if key is None else msgspec.json.decode(self._store.get_bytes(key), type=list[StoredShard])

    def _shard_prefix(self, index: int, fence: int) -> str:
        """Key prefix of a shard's files: where another audit left them, or under a fence of this one."""
        shard = self._shards[index]
        own = layout.extraction_prefix(self._order.project_id, self._order.audit_id)
        return shard.location or f"{own}{shard.name}/f{fence}/"

    @property
    def parent(self) -> Parent | None:
        return self._parent

    @cached_property
    def _parent(self) -> FinishedAudit | None:
        parent = self.spec.parent
        if not isinstance(parent, ParentRef):
            return None
        return FinishedAudit(Bundle(self._store, parent.location))

    def known_shards(self) -> list[KnownShard]:
        found: list[KnownShard] = []
        for prefix in self.spec.extractions or []:
            for item in self._store.list(prefix):
                folder, _, name = item.key.rpartition("/")
                if name == layout.ENTRY:
                    shard = folder.removeprefix(prefix).partition("/")[0]
                    found.append(KnownShard(name=shard, location=f"{folder}/"))
        return found

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
            if stage == "extract":
                found = self._stored(fences) | found
            self._found[stage] = found
        return self._found[stage]

    def _stored(self, fences: list[int]) -> dict[str, str]:
        """Path -> key of the files of every stored shard; `fences` are the winners of `extract`."""
        found: dict[str, str] = {}
        for index, fence in enumerate(fences if self._shards else ()):
            prefix = self._shard_prefix(index, fence)
            found |= {path(index): f"{prefix}{name}" for name, path in layout.STORED_FILES.items()}
        return found

    def shared(self) -> dict[str, FileEntry]:
        """The gradients that the bundle refers to, as their shards' entries list them."""
        fences = self._order.winners.get("extract", [])
        found: dict[str, FileEntry] = {}
        for index, fence in enumerate(fences if self._shards else ()):
            key = f"{self._shard_prefix(index, fence)}{layout.ENTRY}"
            files = msgspec.json.decode(self._store.get_bytes(key), type=Entry).files
            file, path = files["gradients.safetensors"], layout.gradient_shard(index)
            found[path] = FileEntry(path=path, size=file.size, sha256=file.sha256)
        return found

    def own_sources(self) -> dict[str, str]:
        """The same for what this unit has written, once that is in the store."""
        self._uploads.finish()
        return {path: self._own + path for path in self._written}

    def input(self, ref: InputRef) -> Path:
        return fetched_input(self._store, ref)

    def read(self, path: str) -> Path:
        if self.stage == "extract" and path == layout.shard_facts(self.index):
            key = f"{self._shard_prefix(self.index, self._order.fence)}facts.json"
        else:
            key = self._find(path)
        local = self._store.local_path(key)
        if local is not None:
            return local
        target = self._inputs / path
        if not target.exists():
            self._store.get_file(key, target)
        return target

    def forget(self, path: str) -> None:
        (self._inputs / path).unlink(missing_ok=True)

    def _direct(self, path: str, stages: Sequence[Stage]) -> str | None:
        """The key of what a stage's only unit wrote, or its unit of this index, found without a listing.

        A listing grows with the shards, and so would the cost of every one of them.
        """
        for stage in stages:
            index = self.index if stage in FAN_OUT else 0
            fences = self._order.winners.get(stage, [])
            if index >= len(fences):
                continue
            name = self._shard_name(path) if stage == "extract" and self._shards else None
            if name is not None:
                return f"{self._shard_prefix(index, fences[index])}{name}"
            key = layout.unit_prefix(self._order.work_prefix, stage, index, fences[index]) + path
            if self._store.exists(key):
                return key
        return None

    def _find(self, path: str) -> str:
        # The latest stages first: a unit mostly reads what was written just before it.
        latest = list(reversed(STAGES))
        direct = self._direct(path, latest)
        if direct is not None:
            return direct
        for stage in latest:
            key = self._stage_sources(stage).get(path)
            if key is not None:
                return key
        raise ObjectNotFound(f"no object {path!r}")

    def write(self, path: str, source: Path) -> None:
        name = self._stored_name(path)
        if name is None:
            key = self._own + path
            self._written.append(path)
        else:
            key = f"{self._shard_prefix(self.index, self._order.fence)}{name}"
        if self._store.local_path(key) is not None:
            self._send(key, source, name)
            return
        self._uploads.add(partial(self._send, key, self._taken(source), name))

    def _taken(self, source: Path) -> Path:
        """The file out of the stage's reach, which may write another one of its name; inputs stay."""
        if not source.is_relative_to(self.scratch):
            return source
        self._outbox.mkdir(exist_ok=True)
        return source.rename(self._outbox / str(next(self._numbers)))

    def _send(self, key: str, source: Path, name: str | None) -> None:
        self._store.put_file(key, source)
        if name is not None:
            self._entry[name] = StoredFile(size=source.stat().st_size, sha256=file_digest(source))
        if source.is_relative_to(self._outbox):
            source.unlink()

    def write_bytes(self, path: str, data: bytes) -> None:
        name = self._stored_name(path)
        if name is None:
            self._store.put_bytes(self._own + path, data)
            self._written.append(path)
        else:
            self._store.put_bytes(f"{self._shard_prefix(self.index, self._order.fence)}{name}", data)
            self._entry[name] = StoredFile(size=len(data), sha256=hashlib.sha256(data).hexdigest())

    def _stored_name(self, path: str) -> str | None:
        """The name that an output has among the files of the stored shard, if it is one of them."""
        if self.stage != "extract" or self._parent is not None or not self._shards:
            return None
        return self._shard_name(path)

    def _shard_name(self, path: str) -> str | None:
        """The name among the files of a stored shard, if `path` is one of this index."""
        names = (name for name, of in layout.STORED_FILES.items() if of(self.index) == path)
        return next(names, None)

    def adopt(self, path: str) -> None:
        if self._parent is None:
            raise ValueError(f"{path}: this audit has no parent")
        if path not in self._parent.shared:  # those are read where they lie
            self._store.copy(self._parent.key(path), self._own + path)
            self._written.append(path)

    def outputs(self) -> list[str]:
        return sorted(self.sources())

    def progress(self, done: int, total: int, unit: str) -> None:
        self._progress(done, total, unit)

    def checkpoint(self) -> None:
        self._checkpoint()

    def commit(self) -> None:
        """Write `unit.json`, and `entry.json` of a shard, once all outputs are in the store.

        Raises `StoreError` when one of them could not be written; nothing is committed then.
        """
        self._uploads.finish()
        if self._entry:
            key = f"{self._shard_prefix(self.index, self._order.fence)}{layout.ENTRY}"
            self._store.put_bytes(key, msgspec.json.encode(Entry(files=self._entry)))
        self._store.put_bytes(self._own + layout.UNIT, msgspec.json.encode(UnitRecord(paths=self._written)))

    def close(self) -> None:
        """Send nothing more; waits for what is being sent."""
        self._uploads.close()


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
    root = cache_folder() / "inputs"
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
