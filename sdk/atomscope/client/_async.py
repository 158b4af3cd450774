"""The asynchronous client: the methods of the blocking one, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from atomscope.client import _core
from atomscope.client._async_handles import AsyncAudit, AsyncSteeredAdapter
from atomscope.client._auto_strength import GivenStrengths, Search
from atomscope.client._retry import RetryPolicy
from atomscope.client._service import Service
from atomscope.client._settings import connection
from atomscope.client._transport import AsyncTransport
from atomscope.client._wire import Params, Reply, next_cursor
from atomscope.types.inputs import Adapter, Dataset, Model, Upload, UploadPurpose
from atomscope.types.presets import Preset, PresetName
from atomscope.types.resources import APIKey, AuditStatus, Deleted, Health, Page
from atomscope.types.resources import Audit as AuditResource
from atomscope.types.resources import SteeredAdapter as SteeredResource
from atomscope.types.spec import AuditConfig, VectorPower
from atomscope.types.steering import Format, Unit

T = TypeVar("T")
R = TypeVar("R")


class AsyncClient:
    """The Atomscope service; see `Client` for the arguments."""

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_retries: int = 2,
    ) -> None:
        url, key = connection(base_url, api_key)
        policy = RetryPolicy(max_retries=max_retries)
        self._service = Service(AsyncTransport(timeout), url, key, policy)
        self.models = AsyncModels(self._service)
        self.adapters = AsyncAdapters(self._service)
        self.datasets = AsyncDatasets(self._service)
        self.uploads = AsyncUploads(self._service)
        self.audits = AsyncAudits(self._service)
        self.steered_adapters = AsyncSteeredAdapters(self._service)
        self.keys = AsyncKeys(self._service)

    async def health(self) -> Health:
        """Whether the service and what it needs are there; needs no valid key."""
        return await _core.health(self._service)

    async def presets(self) -> list[Preset]:
        """The settings that an audit can be given by name."""
        return await _core.presets(self._service)

    async def raw(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Any request of the API, `/v1/...`, with the answer's status, headers and content.

        Retried and raising like every other; `body` is sent as JSON.
        """
        return await _core.raw(self._service, method, path, params, body, headers)

    async def close(self) -> None:
        await self._service.close()

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
        page, cursor = self._first, None
        while True:
            for item in page.data:
                yield self._wrap(item)
            cursor = next_cursor(page, cursor)
            if cursor is None:
                return
            page = await self._more(cursor)


class _Resource(Generic[T]):
    """What every kind of resource has: list, get and delete."""

    _collection: _core.Collection[T]

    def __init__(self, service: Service) -> None:
        self._service = service

    async def get(self, resource_id: str) -> T:
        return await self._collection.get(self._service, resource_id)

    async def delete(self, resource_id: str) -> Deleted:
        return await self._collection.delete(self._service, resource_id)

    async def list(self, *, limit: int = 20) -> AsyncListing[T]:
        """The newest first; `limit` is the size of a page, at most 100."""
        return await self._listing(limit, lambda item: item)

    async def _listing(self, limit: int, wrap: Callable[[T], R], **filters: str | int) -> AsyncListing[R]:
        async def page(cursor: str | None) -> Page[T]:
            return await self._collection.page(self._service, limit, cursor, **filters)

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
        return await _core.create_model(self._service, source, name, hub_id, revision)


class AsyncAdapters(_Resource[Adapter]):
    _collection = _core.ADAPTERS

    async def create(self, source: str | Path, *, name: str | None = None) -> Adapter:
        """Upload a PEFT folder."""
        return await _core.create_adapter(self._service, source, name)


class AsyncDatasets(_Resource[Dataset]):
    _collection = _core.DATASETS

    async def create(self, source: str | Path, *, name: str | None = None) -> Dataset:
        """Upload a file that ends in one of `atomscope.input_files.DATASET_ENDINGS`."""
        return await _core.create_dataset(self._service, source, name)


class AsyncUploads(_Resource[Upload]):
    _collection = _core.UPLOADS

    async def create(self, purpose: UploadPurpose, source: str | Path) -> Upload:
        """Send a folder (`model`, `adapter`) or a file (`dataset`); the completed upload."""
        return await _core.create_upload(self._service, purpose, Path(source))


class AsyncKeys(_Resource[APIKey]):
    _collection = _core.KEYS

    async def create(self, name: str) -> APIKey:
        """A new key of the project; `key` holds it, this once."""
        return await _core.create_key(self._service, name)


class AsyncSteeredAdapters(_Resource[SteeredResource]):
    _collection = _core.STEERED

    async def create(
        self,
        *,
        audit: str,
        strengths: GivenStrengths,
        name: str | None = None,
        format: Format = "adapter",
        unit: Unit = "norm",
        power: VectorPower | None = None,
        kl_budget: float | None = None,
        perplexity_budget: float | None = None,
        timeout: float | None = None,
    ) -> AsyncSteeredAdapter:
        """Steer the adapter of an audit, as `Audit.steer` does."""
        how = Search(kl_budget, perplexity_budget, timeout)
        created = await _core.steer_audit(self._service, audit, strengths, name, format, unit, power, how)
        return AsyncSteeredAdapter(self._service, created)

    async def get(self, resource_id: str) -> AsyncSteeredAdapter:  # type: ignore[override]  # a handle in its place
        return AsyncSteeredAdapter(self._service, await super().get(resource_id))

    async def list(self, *, limit: int = 20) -> AsyncListing[AsyncSteeredAdapter]:  # type: ignore[override]
        return await self._listing(limit, lambda item: AsyncSteeredAdapter(self._service, item))


class AsyncAudits(_Resource[AuditResource]):
    _collection = _core.AUDITS

    async def create(
        self,
        *,
        base_model: str | Path,
        adapter: str | Path,
        dataset: str | Path,
        preset: PresetName | None = None,
        config: AuditConfig | Mapping[str, Any] | None = None,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncAudit:
        """Start an audit; see `Audits.create`."""
        created = await _core.create_audit(
            self._service,
            base_model=base_model,
            adapter=adapter,
            dataset=dataset,
            config=config,
            preset=preset,
            name=name,
            metadata=metadata,
        )
        return AsyncAudit(self._service, created)

    async def refit(
        self,
        audit_id: str,
        *,
        preset: PresetName | None = None,
        config: Mapping[str, Any] | None = None,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncAudit:
        """The same as `AsyncAudit.refit`, of an audit by its id."""
        audit = await _core.AUDITS.get(self._service, audit_id)
        created = await _core.refit_audit(self._service, audit, preset, config, name, metadata)
        return AsyncAudit(self._service, created)

    async def get(self, resource_id: str) -> AsyncAudit:  # type: ignore[override]
        return AsyncAudit(self._service, await super().get(resource_id))

    async def list(  # type: ignore[override]  # handles in place of the bare resources
        self, *, limit: int = 20, status: AuditStatus | None = None
    ) -> AsyncListing[AsyncAudit]:
        filters: dict[str, str] = {} if status is None else {"status": status}
        return await self._listing(limit, lambda item: AsyncAudit(self._service, item), **filters)
