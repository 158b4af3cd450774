"""The asynchronous client: the methods of the blocking one, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from atomscope.bundle.atom_list import AtomAttributes, AtomList, strengths_by_index
from atomscope.client import _audits, _core
from atomscope.client._downloads import download_bundle, download_steered
from atomscope.client._handles import AuditAttributes, SteeredAttributes
from atomscope.client._progress import display
from atomscope.client._settings import connection
from atomscope.client._transport import AsyncTransport
from atomscope.types.atoms import Atom, AuditReport
from atomscope.types.resources import (
    Adapter,
    APIKey,
    AuditStatus,
    Dataset,
    Deleted,
    DocumentMatch,
    Event,
    Health,
    Model,
    Page,
    Upload,
)
from atomscope.types.resources import Audit as AuditResource
from atomscope.types.resources import SteeredAdapter as SteeredResource
from atomscope.types.spec import AuditConfig

T = TypeVar("T")
R = TypeVar("R")


class AsyncClient:
    """The Atomscope service; see `Client` for the arguments."""

    def __init__(
        self, *, base_url: str | None = None, api_key: str | None = None, timeout: float = 60.0
    ) -> None:
        url, key = connection(base_url, api_key)
        self._transport = AsyncTransport(url, key, timeout)
        self.models = AsyncModels(self._transport)
        self.adapters = AsyncAdapters(self._transport)
        self.datasets = AsyncDatasets(self._transport)
        self.uploads = AsyncUploads(self._transport)
        self.audits = AsyncAudits(self._transport)
        self.steered_adapters = AsyncSteeredAdapters(self._transport)
        self.keys = AsyncKeys(self._transport)

    async def health(self) -> Health:
        return await _core.health(self._transport)

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class AsyncListing(Generic[T]):
    """The first page of a list; iterating goes on through the pages after it."""

    def __init__(
        self, first: Page[Any], more: Callable[[str], Awaitable[Page[Any]]], wrap: Callable[[Any], T]
    ) -> None:
        self._first = first
        self._more = more
        self._wrap = wrap

    @property
    def data(self) -> list[T]:
        """The first page."""
        return [self._wrap(item) for item in self._first.data]

    @property
    def has_more(self) -> bool:
        return self._first.has_more

    async def __aiter__(self) -> AsyncIterator[T]:
        page = self._first
        while True:
            for item in page.data:
                yield self._wrap(item)
            if not page.has_more or page.next is None:
                return
            page = await self._more(page.next)


class _Resource(Generic[T]):
    """What every kind of resource has: list, get and delete."""

    _collection: _core.Collection[T]

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def get(self, resource_id: str) -> T:
        return await self._collection.get(self._transport, resource_id)

    async def delete(self, resource_id: str) -> Deleted:
        return await self._collection.delete(self._transport, resource_id)

    async def list(self, *, limit: int = 20) -> AsyncListing[T]:
        """The newest first; `limit` is the size of a page, at most 100."""
        return await self._listing(limit, lambda item: item)

    async def _listing(self, limit: int, wrap: Callable[[T], R], **filters: str | int) -> AsyncListing[R]:
        async def page(cursor: str | None) -> Page[T]:
            return await self._collection.page(self._transport, limit, cursor, **filters)

        return AsyncListing(await page(None), page, wrap)


class AsyncModels(_Resource[Model]):
    _collection = _core.MODELS

    async def create(
        self,
        source: str | Path | None = None,
        *,
        name: str | None = None,
        hub_id: str | None = None,
        revision: str | None = None,
    ) -> Model:
        """Upload the folder `source`, or import `hub_id` at `revision` (a full commit hash) where allowed."""
        return await _core.create_model(self._transport, source, name, hub_id, revision)


class AsyncAdapters(_Resource[Adapter]):
    _collection = _core.ADAPTERS

    async def create(self, source: str | Path, *, name: str | None = None) -> Adapter:
        """Upload a PEFT folder."""
        return await _core.create_adapter(self._transport, source, name)


class AsyncDatasets(_Resource[Dataset]):
    _collection = _core.DATASETS

    async def create(self, source: str | Path, *, name: str | None = None) -> Dataset:
        """Upload a `.jsonl` or `.parquet` file."""
        return await _core.create_dataset(self._transport, source, name)


class AsyncUploads(_Resource[Upload]):
    _collection = _core.UPLOADS


class AsyncKeys(_Resource[APIKey]):
    _collection = _core.KEYS

    async def create(self, name: str) -> APIKey:
        """A new key of the project; `key` holds it, this once."""
        return await _core.create_key(self._transport, name)


class AsyncSteeredAdapters(_Resource[SteeredResource]):
    _collection = _core.STEERED

    async def save(self, steered_id: str, folder: str | Path) -> Path:
        """Write it as a PEFT folder."""
        return await download_steered(self._transport, steered_id, Path(folder))


class AsyncAudits(_Resource[AuditResource]):
    _collection = _core.AUDITS

    async def create(
        self,
        *,
        base_model: str | Path,
        adapter: str | Path,
        dataset: str | Path,
        config: AuditConfig | Mapping[str, Any] | None = None,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncAudit:
        """Start an audit; see `Audits.create`."""
        created = await _core.create_audit(
            self._transport, base_model, adapter, dataset, config, name, metadata
        )
        return AsyncAudit(self._transport, created)

    async def get(self, resource_id: str) -> AsyncAudit:  # type: ignore[override]
        return AsyncAudit(self._transport, await super().get(resource_id))

    async def list(  # type: ignore[override]  # handles in place of the bare resources
        self, *, limit: int = 20, status: AuditStatus | None = None
    ) -> AsyncListing[AsyncAudit]:
        filters: dict[str, str] = {} if status is None else {"status": status}
        return await self._listing(limit, lambda item: AsyncAudit(self._transport, item), **filters)


class AsyncAudit(AuditAttributes):
    """An audit of the service."""

    def __init__(self, transport: AsyncTransport, resource: AuditResource) -> None:
        super().__init__(resource)
        self._transport = transport

    async def refresh(self) -> Self:
        """Read it again."""
        self.resource = await _audits.get(self._transport, self.id)
        return self

    async def cancel(self) -> Self:
        """Ask it to stop; it ends as `canceled` within a micro-batch of its workers."""
        self.resource = await _core.cancel_audit(self._transport, self.id)
        return self

    async def delete(self) -> None:
        """Delete it with its bundle; only once it has ended."""
        await _core.AUDITS.delete(self._transport, self.id)

    async def events(self, after: int = 0) -> list[Event]:
        """What has happened so far, after a sequence number."""
        return await _audits.past_events(self._transport, self.id, after)

    async def follow(self, after: int = 0) -> AsyncIterator[Event]:
        """Events as they happen, to the end of the audit, through lost connections."""
        async for event in _audits.follow(self._transport, self.id, after):
            yield event

    async def wait(
        self,
        timeout: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        progress: bool | None = None,
    ) -> Self:
        """Wait until it has succeeded; see `Audit.wait`."""
        bars = display(progress)
        self.resource = await _audits.wait(self._transport, self.id, timeout, on_event, bars)
        return self

    async def atoms(self) -> AtomList[AsyncRemoteAtom]:
        """Its atoms, by rank."""
        found = await _core.audit_atoms(self._transport, self.id)
        return AtomList([AsyncRemoteAtom(self._transport, self.id, atom) for atom in found])

    async def report(self) -> AuditReport:
        return await _core.audit_report(self._transport, self.id)

    async def download(self, folder: str | Path) -> Path:
        """Bring the whole bundle into a folder, every file's SHA-256 checked; goes on where it stopped."""
        return await download_bundle(self._transport, self.id, Path(folder))

    async def steer(
        self, strengths: Mapping[AtomAttributes, float] | Mapping[int, float], name: str | None = None
    ) -> AsyncSteeredAdapter:
        """Have the adapter steered: atoms (or their indices) to strengths in units of the adapter's norm."""
        created = await _core.steer_audit(self._transport, self.id, strengths_by_index(strengths), name)
        return AsyncSteeredAdapter(self._transport, created)


class AsyncRemoteAtom(AtomAttributes):
    """An atom of an audit of the service."""

    def __init__(self, transport: AsyncTransport, audit_id: str, atom: Atom) -> None:
        super().__init__(atom)
        self._transport = transport
        self._audit_id = audit_id

    async def documents(
        self, sign: Literal["positive", "negative"] = "positive", limit: int | None = None
    ) -> list[DocumentMatch]:
        """Its active documents of one sign with their text, strongest first."""
        return await _core.atom_documents(self._transport, self._audit_id, self.index, sign, limit)

    async def vector(self) -> dict[str, NDArray[np.float32]]:
        """Its steering vector: float32, named and shaped as the LoRA parameters."""
        return await _core.atom_vector(self._transport, self._audit_id, self.index)


class AsyncSteeredAdapter(SteeredAttributes):
    """A steered adapter, kept by the service until it is deleted."""

    def __init__(self, transport: AsyncTransport, resource: SteeredResource) -> None:
        super().__init__(resource)
        self._transport = transport

    async def save(self, folder: str | Path) -> Path:
        """Write it as a PEFT folder and return the folder."""
        return await download_steered(self._transport, self.id, Path(folder))

    async def delete(self) -> None:
        await _core.STEERED.delete(self._transport, self.id)
