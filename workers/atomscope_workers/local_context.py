"""A `StageContext` over folders, for audits in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from atomscope.store import LocalStore, ObjectNotFound
from atomscope.types.spec import AuditSpec, InputRef
from atomscope.types.work import Stage
from atomscope_workers.hard_links import link
from atomscope_workers.shard_cache import ShardCache
from atomscope_workers.stages.context import KnownShard, Parent
from atomscope_workers.work_folder import FILES

MAX_ROWS = 2_000_000


@dataclass
class LocalContext:
    """Outputs of every unit lie in one folder of `work`, at their bundle paths."""

    spec: AuditSpec
    stage: Stage
    index: int
    shards: int
    scratch: Path
    work: Path
    tell: Callable[[int, int, str], None]
    max_rows: int = MAX_ROWS
    parent: Parent | None = None
    cache: ShardCache | None = None
    written: list[str] = field(default_factory=list[str])
    out: Path | None = None
    """Where outputs would lie, of an audit that is only tried."""

    @property
    def outputs_folder(self) -> Path:
        return self.out or self.work

    @property
    def shard_cache(self) -> Path | None:
        return None if self.cache is None else self.cache.folder

    @property
    def copies_outputs(self) -> bool:
        return False

    def input(self, ref: InputRef) -> Path:
        return Path(ref.location)

    def known_shards(self) -> list[KnownShard]:
        """Those of the cache; bundles on one machine keep no factor sums."""
        return [] if self.cache is None else self.cache.known()

    def adopt(self, path: str) -> None:
        if self.parent is None:
            raise ValueError(f"{path}: this audit has no parent")
        link(self.parent.read(path), self.work / FILES / path)
        self.parent.forget(path)
        self.written.append(path)

    def read(self, path: str) -> Path:
        file = self.work / FILES / path
        if not file.is_file():
            raise ObjectNotFound(f"no object {path!r}")
        return file

    def read_range(self, path: str, start: int, length: int) -> bytearray:
        return LocalStore(self.work / FILES).get_range(path, start, length)

    def forget(self, path: str) -> None:
        """Nothing was fetched."""

    def write(self, path: str, source: Path) -> None:
        store = LocalStore(self.work / FILES)
        if source.is_relative_to(self.scratch):
            store.move_file(path, source)
        else:
            store.put_file(path, source)
        self.written.append(path)

    def write_bytes(self, path: str, data: bytes) -> None:
        LocalStore(self.work / FILES).put_bytes(path, data)
        self.written.append(path)

    def outputs(self) -> list[str]:
        return [item.key for item in LocalStore(self.work / FILES).list("")]

    def progress(self, done: int, total: int, unit: str) -> None:
        self.tell(done, total, unit)

    def checkpoint(self) -> None:
        """Nothing stops a local audit but an interrupt, which raises by itself."""
