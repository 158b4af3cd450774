"""A unit's view of the store: inputs from the winners of earlier stages, outputs under its own fence."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from pathlib import Path

import msgspec

from atomscope.bundle import Bundle, layout
from atomscope.store import ObjectStore
from atomscope.types.bundle import FileEntry, Plan, StoredFile
from atomscope.types.spec import AuditSpec, InputRef, ParentRef
from atomscope.types.work import Stage, UnitOrder
from atomscope_workers.background import BackgroundCalls
from atomscope_workers.fetched_inputs import fetched_input
from atomscope_workers.opened_audit import ParentAudit
from atomscope_workers.stages.context import KnownShard, Parent
from atomscope_workers.stored_entry import Entry, stored_file
from atomscope_workers.unit_sources import UnitSources

MAX_ROWS_VARIABLE = "ATOMSCOPE_MAX_ROWS"
UPLOADS_AT_ONCE = 2
"""Each large file goes in parts, four at a time."""
UPLOADS_WAITING = 8


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
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`waiting` is entered while this unit waits for files to be fetched or sent."""
        self._store = store
        self._order = order
        self._sources = UnitSources(store, order)
        self._progress = progress
        self._checkpoint = checkpoint
        self._own = layout.unit_prefix(order.work_prefix, order.stage, order.index, order.fence)
        # A disk of this machine that hangs is not waited for as a network is.
        self._waiting = waiting if store.local_path(self._own) is None else nullcontext
        self._written: list[str] = []
        self._entry: dict[str, StoredFile] = {}
        self._inputs = scratch / "inputs"
        self._outbox = scratch / "outbox"
        self._fetched = scratch / "parent"
        self._keys: dict[str, str] = {}
        self._numbers = itertools.count()
        self._uploads = BackgroundCalls("upload", at_once=UPLOADS_AT_ONCE, waiting=UPLOADS_WAITING)
        self.scratch = scratch / "outputs"
        self.scratch.mkdir()
        self._fetched.mkdir()
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
    def outputs_folder(self) -> Path | None:
        return self._store.local_path(self._own)

    @property
    def shard_cache(self) -> Path | None:
        return None

    @property
    def copies_outputs(self) -> bool:
        return True

    @property
    def parent(self) -> Parent | None:
        return self._parent

    @cached_property
    def _parent(self) -> ParentAudit | None:
        parent = self.spec.parent
        if not isinstance(parent, ParentRef):
            return None
        return ParentAudit(Bundle(self._store, parent.location, self._fetched), self._waiting)

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
        return self._sources.all()

    def shared(self) -> dict[str, FileEntry]:
        """The gradients that the bundle refers to, as their shards' entries list them."""
        return self._sources.shared()

    def own_sources(self) -> dict[str, str]:
        """The same for what this unit has written, once that is in the store."""
        self._sent()
        return {path: self._own + path for path in self._written}

    def input(self, ref: InputRef) -> Path:
        with self._waiting():
            return fetched_input(self._store, ref)

    def read(self, path: str) -> Path:
        if self.stage == "extract" and path == layout.shard_facts(self.index):
            key = f"{self._sources.shard_prefix(self.index, self._order.fence)}facts.json"
        else:
            key = self._sources.find(path)
        local = self._store.local_path(key)
        if local is not None:
            return local
        target = self._inputs / path
        if not target.exists():
            with self._waiting():
                self._store.get_file(key, target)
        return target

    def read_range(self, path: str, start: int, length: int) -> bytearray:
        if path not in self._keys:
            self._keys[path] = self._sources.find(path)
        with self._waiting():
            return self._store.get_range(self._keys[path], start, length)

    def forget(self, path: str) -> None:
        (self._inputs / path).unlink(missing_ok=True)

    def write(self, path: str, source: Path) -> None:
        name = self._stored_name(path)
        if name is None:
            key = self._own + path
            self._written.append(path)
        else:
            key = f"{self._sources.shard_prefix(self.index, self._order.fence)}{name}"
        if self._store.local_path(key) is not None:
            self._send(key, source, name)
            return
        with self._waiting():  # for room among those that are being sent
            self._uploads.add(partial(self._send, key, self._taken(source), name))

    def _sent(self) -> None:
        with self._waiting():
            self._uploads.finish()

    def _taken(self, source: Path) -> Path:
        """The file out of the stage's reach, which may write another one of its name; inputs stay."""
        if not source.is_relative_to(self.scratch):
            return source
        self._outbox.mkdir(exist_ok=True)
        return source.rename(self._outbox / str(next(self._numbers)))

    def _send(self, key: str, source: Path, name: str | None) -> None:
        self._store.put_file(key, source)
        if name is not None:
            self._entry[name] = stored_file(source)
        if source.is_relative_to(self._outbox):
            source.unlink()

    def write_bytes(self, path: str, data: bytes) -> None:
        name = self._stored_name(path)
        folder = self._own if name is None else self._sources.shard_prefix(self.index, self._order.fence)
        with self._waiting():
            self._store.put_bytes(f"{folder}{name or path}", data)
        if name is None:
            self._written.append(path)
        else:
            self._entry[name] = StoredFile(size=len(data), sha256=hashlib.sha256(data).hexdigest())

    def _stored_name(self, path: str) -> str | None:
        """The name that an output has among the files of the stored shard, if it is one of them."""
        if self.stage != "extract" or self._parent is not None or not self._sources.shards:
            return None
        return self._sources.shard_name(path)

    def adopt(self, path: str) -> None:
        if self._parent is None:
            raise ValueError(f"{path}: this audit has no parent")
        if path not in self._parent.shared:  # those are read where they lie
            with self._waiting():
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
        self._sent()
        if self._entry:
            key = f"{self._sources.shard_prefix(self.index, self._order.fence)}{layout.ENTRY}"
            self._store.put_bytes(key, msgspec.json.encode(Entry(files=self._entry)))
        self._store.put_bytes(self._own + layout.UNIT, msgspec.json.encode(UnitRecord(paths=self._written)))

    def close(self) -> None:
        """Send nothing more; waits for what is being sent."""
        self._uploads.close()
