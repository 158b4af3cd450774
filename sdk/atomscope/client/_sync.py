"""The blocking client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from atomscope.client import _core
from atomscope.client._auto_strength import GivenStrengths, Search
from atomscope.client._retry import RetryPolicy
from atomscope.client._service import Service
from atomscope.client._settings import connection
from atomscope.client._sync_handles import Audit, SteeredAdapter
from atomscope.client._transport import BlockingTransport, run
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


class Client:
    """The Atomscope service.

    `base_url` and `api_key` default to `ATOMSCOPE_BASE_URL` and to `ATOMSCOPE_API_KEY` or the file named by
    `ATOMSCOPE_API_KEY_FILE`; `timeout` is in seconds without a byte, `max_retries` how often a request that
    failed on the way is sent again. A context manager; else close it. Raises `UsageError` for what cannot
    be sent, and the subclasses of `APIError`, which carry the request id.
    """

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
        self._service = Service(BlockingTransport(timeout), url, key, policy)
        self.models = Models(self._service)
        self.adapters = Adapters(self._service)
        self.datasets = Datasets(self._service)
        self.uploads = Uploads(self._service)
        self.audits = Audits(self._service)
        self.steered_adapters = SteeredAdapters(self._service)
        self.keys = Keys(self._service)

    def health(self) -> Health:
        """Whether the service and what it needs are there; needs no valid key."""
        return run(_core.health(self._service))

    def presets(self) -> list[Preset]:
        """The settings that an audit can be given by name."""
        return run(_core.presets(self._service))

    def raw(
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
        return run(_core.raw(self._service, method, path, params, body, headers))

    def close(self) -> None:
        run(self._service.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Listing(Generic[T]):
    """The first page of a list; iterating goes on through the pages after it."""

    def __init__(self, first: Page[Any], more: Callable[[str], Page[Any]], wrap: Callable[[Any], T]) -> None:
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

    def __iter__(self) -> Iterator[T]:
        page, cursor = self._first, None
        while True:
            for item in page.data:
                yield self._wrap(item)
            cursor = next_cursor(page, cursor)
            if cursor is None:
                return
            page = self._more(cursor)


class _Resource(Generic[T]):
    """What every kind of resource has: list, get and delete."""

    _collection: _core.Collection[T]

    def __init__(self, service: Service) -> None:
        self._service = service

    def get(self, resource_id: str) -> T:
        return run(self._collection.get(self._service, resource_id))

    def delete(self, resource_id: str) -> Deleted:
        return run(self._collection.delete(self._service, resource_id))

    def list(self, *, limit: int = 20) -> Listing[T]:
        """The newest first; `limit` is the size of a page, at most 100."""
        return self._listing(limit, lambda item: item)

    def _listing(self, limit: int, wrap: Callable[[T], R], **filters: str | int) -> Listing[R]:
        def page(cursor: str | None) -> Page[T]:
            return run(self._collection.page(self._service, limit, cursor, **filters))

        return Listing(page(None), page, wrap)


class Models(_Resource[Model]):
    _collection = _core.MODELS

    def create(
        self,
        source: str | Path | None = None,
        *,
        name: str | None = None,
        hub_id: str | None = None,
        revision: str | None = None,
    ) -> Model:
        """Upload the folder `source`, or import `hub_id` at `revision` (a full commit hash) where allowed."""
        return run(_core.create_model(self._service, source, name, hub_id, revision))


class Adapters(_Resource[Adapter]):
    _collection = _core.ADAPTERS

    def create(self, source: str | Path, *, name: str | None = None) -> Adapter:
        """Upload a PEFT folder."""
        return run(_core.create_adapter(self._service, source, name))


class Datasets(_Resource[Dataset]):
    _collection = _core.DATASETS

    def create(self, source: str | Path, *, name: str | None = None) -> Dataset:
        """Upload a file that ends in one of `atomscope.input_files.DATASET_ENDINGS`."""
        return run(_core.create_dataset(self._service, source, name))


class Uploads(_Resource[Upload]):
    _collection = _core.UPLOADS

    def create(self, purpose: UploadPurpose, source: str | Path) -> Upload:
        """Send a folder (`model`, `adapter`) or a file (`dataset`); the completed upload."""
        return run(_core.create_upload(self._service, purpose, Path(source)))


class Keys(_Resource[APIKey]):
    _collection = _core.KEYS

    def create(self, name: str) -> APIKey:
        """A new key of the project; `key` holds it, this once."""
        return run(_core.create_key(self._service, name))


class SteeredAdapters(_Resource[SteeredResource]):
    _collection = _core.STEERED

    def create(
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
    ) -> SteeredAdapter:
        """Steer the adapter of an audit, as `Audit.steer` does."""
        how = Search(kl_budget, perplexity_budget, timeout)
        created = run(_core.steer_audit(self._service, audit, strengths, name, format, unit, power, how))
        return SteeredAdapter(self._service, created)

    def get(self, resource_id: str) -> SteeredAdapter:  # type: ignore[override]  # a handle in its place
        return SteeredAdapter(self._service, super().get(resource_id))

    def list(self, *, limit: int = 20) -> Listing[SteeredAdapter]:  # type: ignore[override]
        return self._listing(limit, lambda item: SteeredAdapter(self._service, item))


class Audits(_Resource[AuditResource]):
    _collection = _core.AUDITS

    def create(
        self,
        *,
        base_model: str | Path,
        adapter: str | Path,
        dataset: str | Path,
        preset: PresetName | None = None,
        config: AuditConfig | Mapping[str, Any] | None = None,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Audit:
        """Start an audit. Each input is an id, or a local path that is uploaded first.

        `preset` names settings, and those of `config`, a dict then, take their place.

        A `str` of an id's form is always an id; anything else must exist as a path. A path whose content
        the project already holds is not sent again. Raises `UsageError` before anything is sent when a
        reference is neither, or `config` holds what no audit takes.
        """
        created = run(
            _core.create_audit(
                self._service,
                base_model=base_model,
                adapter=adapter,
                dataset=dataset,
                config=config,
                preset=preset,
                name=name,
                metadata=metadata,
            )
        )
        return Audit(self._service, created)

    def refit(
        self,
        audit_id: str,
        *,
        preset: PresetName | None = None,
        config: Mapping[str, Any] | None = None,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Audit:
        """The same as `Audit.refit`, of an audit by its id."""
        audit = run(_core.AUDITS.get(self._service, audit_id))
        created = run(_core.refit_audit(self._service, audit, preset, config, name, metadata))
        return Audit(self._service, created)

    def get(self, resource_id: str) -> Audit:  # type: ignore[override]  # a handle in place of the bare resource
        return Audit(self._service, super().get(resource_id))

    def list(self, *, limit: int = 20, status: AuditStatus | None = None) -> Listing[Audit]:  # type: ignore[override]
        filters: dict[str, str] = {} if status is None else {"status": status}
        return self._listing(limit, lambda item: Audit(self._service, item), **filters)
