"""What a stage is given: its spec, its inputs, a place for its outputs, and a way to be stopped.

A stage is a function of a `StageContext`. The Celery task and the local driver build the context and
run the same functions; neither the stages nor the pipeline know which of the two it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from atomscope.types.spec import AuditSpec, InputRef
from atomscope.types.work import Stage


class Stopped(Exception):  # noqa: N818
    """Raised by `StageContext.checkpoint` when the audit was canceled or the unit's fence is not live."""


class UnitResult(msgspec.Struct, kw_only=True):
    """What a unit tells control beyond the files it wrote (see `UnitSucceeded`)."""

    shards: int | None = None
    documents: int | None = None
    summary: dict[str, Any] = {}


class Parent(Protocol):
    """What an earlier audit left, for a refit of it: files by bundle path, some of them under `work/`."""

    @property
    def spec(self) -> AuditSpec: ...

    @property
    def shared(self) -> Mapping[str, str]:
        """Path -> key in the store, of the files that lie there for several audits."""
        ...

    def holds(self, path: str) -> bool:
        """Whether `read(path)` is there."""
        ...

    def read(self, path: str) -> Path:
        """A local file with the content of `path`; an error that names it when it is missing or damaged."""
        ...

    def forget(self, path: str) -> None:
        """Remove the copy that `read(path)` fetched, if it did."""
        ...


class KnownShard(msgspec.Struct, kw_only=True, frozen=True):
    """A shard that some audit of the project extracted."""

    name: str
    location: str
    """Key prefix of its files."""


class StageContext(Protocol):
    """One unit's view of the world. Paths are bundle paths (`atomscope.bundle.layout`)."""

    @property
    def spec(self) -> AuditSpec: ...

    @property
    def stage(self) -> Stage: ...

    @property
    def index(self) -> int:
        """Number of the unit, which is that of a shard, of a stage that fans out; else 0."""
        ...

    @property
    def shards(self) -> int:
        """Shards of the plan; 0 before `validate` has succeeded."""
        ...

    @property
    def scratch(self) -> Path:
        """An empty folder of this unit, removed when it ends."""
        ...

    @property
    def outputs_folder(self) -> Path | None:
        """Where outputs will lie on this machine's disk; None where they go over a network."""
        ...

    @property
    def copies_outputs(self) -> bool:
        """Whether what is written from `scratch` is copied, and lies in both for a while, or is moved."""
        ...

    @property
    def shard_cache(self) -> Path | None:
        """A folder with which shards are exchanged, by links where it lies on the disk of the outputs."""
        ...

    @property
    def parent(self) -> Parent | None:
        """Of a refit, the audit that it is a refit of."""
        ...

    def known_shards(self) -> list[KnownShard]:
        """Shards that the plan may use instead of extracting them; for `validate`."""
        ...

    @property
    def max_rows(self) -> int:
        """Rows a data set may have."""
        ...

    def input(self, ref: InputRef) -> Path:
        """The local file or folder of an input, fetched and its digest checked if need be."""
        ...

    def read(self, path: str) -> Path:
        """A local file holding what an earlier unit wrote at `path`; raises `ObjectNotFound`."""
        ...

    def read_range(self, path: str, start: int, length: int) -> bytearray:
        """Some bytes of what an earlier unit wrote at `path`, and no more of it; raises as `read` does."""
        ...

    def forget(self, path: str) -> None:
        """Remove the copy that `read(path)` fetched, if it did: the next one is fetched anew."""
        ...

    def write(self, path: str, source: Path) -> None:
        """Store `source` (a file in `scratch`) as this unit's output `path`; it may be gone afterwards.

        Where it goes over a network, the unit goes on meanwhile: an error is told later, by the end at last.
        """
        ...

    def write_bytes(self, path: str, data: bytes) -> None:
        """Store small content as this unit's output `path`."""
        ...

    def adopt(self, path: str) -> None:
        """Make the parent's file `path` this unit's output `path`, unchanged."""
        ...

    def outputs(self) -> list[str]:
        """Every path written so far by the winning units of finished stages, sorted."""
        ...

    def progress(self, done: int, total: int, unit: str) -> None:
        """Counts of this unit; cheap, may be called every micro-batch."""
        ...

    def checkpoint(self) -> None:
        """Return if the unit should go on; raise `Stopped` otherwise. Called between micro-batches."""
        ...


StageFunction = Callable[[StageContext], UnitResult]
