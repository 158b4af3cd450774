"""Where the files of an audit's units lie in the store: of the winning ones, and of the stored shards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import msgspec

from atomscope.bundle import layout
from atomscope.store import ObjectNotFound, ObjectStore
from atomscope.types.bundle import FileEntry, StoredShard
from atomscope.types.work import FAN_OUT, STAGES, Stage, UnitOrder
from atomscope_workers.stored_entry import Entry


class UnitSources:
    """What the unit of an order may read of the units before it."""

    def __init__(self, store: ObjectStore, order: UnitOrder) -> None:
        self._store = store
        self._order = order
        self._found: dict[Stage, dict[str, str]] = {}

    @cached_property
    def shards(self) -> list[StoredShard]:
        """Where the shards of the plan lie; none before there is a plan."""
        key = self._direct(layout.SHARDS, ["validate"])
        return [] if key is None else msgspec.json.decode(self._store.get_bytes(key), type=list[StoredShard])

    def shard_prefix(self, index: int, fence: int) -> str:
        """Key prefix of a shard's files: where another audit left them, or under a fence of this one."""
        shard = self.shards[index]
        own = layout.extraction_prefix(self._order.project_id, self._order.audit_id)
        return shard.location or f"{own}{shard.name}/f{fence}/"

    def all(self) -> dict[str, str]:
        """Bundle path -> key, of every output of the winning units of finished stages."""
        found: dict[str, str] = {}
        for stage in STAGES:
            found |= self._of_stage(stage)
        return found

    def _of_stage(self, stage: Stage) -> dict[str, str]:
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
        for index, fence in enumerate(fences if self.shards else ()):
            prefix = self.shard_prefix(index, fence)
            found |= {path(index): f"{prefix}{name}" for name, path in layout.STORED_FILES.items()}
        return found

    def shared(self) -> dict[str, FileEntry]:
        """The gradients that the bundle refers to, as their shards' entries list them."""
        fences = self._order.winners.get("extract", [])
        found: dict[str, FileEntry] = {}
        for index, fence in enumerate(fences if self.shards else ()):
            key = f"{self.shard_prefix(index, fence)}{layout.ENTRY}"
            files = msgspec.json.decode(self._store.get_bytes(key), type=Entry).files
            file, path = files["gradients.safetensors"], layout.gradient_shard(index)
            found[path] = FileEntry(path=path, size=file.size, sha256=file.sha256)
        return found

    def _direct(self, path: str, stages: Sequence[Stage]) -> str | None:
        """The key of what a stage's only unit wrote, or its unit of this index, found without a listing.

        A listing grows with the shards, and so would the cost of every one of them.
        """
        for stage in stages:
            index = self._order.index if stage in FAN_OUT else 0
            fences = self._order.winners.get(stage, [])
            if index >= len(fences):
                continue
            name = self.shard_name(path) if stage == "extract" and self.shards else None
            if name is not None:
                return f"{self.shard_prefix(index, fences[index])}{name}"
            key = layout.unit_prefix(self._order.work_prefix, stage, index, fences[index]) + path
            if self._store.exists(key):
                return key
        return None

    def find(self, path: str) -> str:
        """The key of a bundle path; raises `ObjectNotFound`."""
        # The latest stages first: a unit mostly reads what was written just before it.
        latest = list(reversed(STAGES))
        # Of what has been listed no more need be asked: some units read a file of every shard.
        for stage in latest:
            if path in self._found.get(stage, {}):
                return self._found[stage][path]
        direct = self._direct(path, latest)
        if direct is not None:
            return direct
        for stage in latest:
            key = self._of_stage(stage).get(path)
            if key is not None:
                return key
        raise ObjectNotFound(f"no object {path!r}")

    def shard_name(self, path: str) -> str | None:
        """The name among the files of a stored shard, if `path` is one of this index."""
        names = (name for name, of in layout.STORED_FILES.items() if of(self._order.index) == path)
        return next(names, None)
