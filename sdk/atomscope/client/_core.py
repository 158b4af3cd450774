"""Every call of the API, once, as coroutines over a `Transport`; both clients are thin over these."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from atomscope.bundle.atom_list import check_sign
from atomscope.bundle.strengths import strengths_by_target
from atomscope.client._auto_strength import GivenStrengths, Search, settled
from atomscope.client._references import checked_refit, checked_settings, is_id, segment
from atomscope.client._service import Service
from atomscope.client._uploads import content_digest, describe, files_for, upload
from atomscope.client._wire import Params, Reply, Request, check, next_cursor, parse, unreadable
from atomscope.errors import UsageError
from atomscope.input_files import dataset_format
from atomscope.steering.targets import check_strengths
from atomscope.types.atoms import Atom, AuditReport, Behaviour
from atomscope.types.hierarchy import Hierarchy
from atomscope.types.inputs import (
    Adapter,
    AdapterCreate,
    Dataset,
    DatasetCreate,
    Model,
    ModelCreate,
    Upload,
    UploadPurpose,
)
from atomscope.types.presets import Preset, PresetName
from atomscope.types.resources import (
    APIKey,
    APIKeyCreate,
    Audit,
    AuditCreate,
    Deleted,
    DocumentMatch,
    Health,
    Page,
    RefitCreate,
    SteeredAdapter,
    SteeredAdapterCreate,
)
from atomscope.types.spec import AuditConfig, VectorPower
from atomscope.types.steering import Format, Unit

T = TypeVar("T")

PAGE = 100
"""Resources asked for at a time when all are wanted."""
_PAGES_SEARCHED = 5
"""Pages of resources, newest first, in which equal content is looked for before a file is sent."""
_STEERING_SECONDS = 300.0
"""The service computes a steered adapter before it answers."""


@dataclass(frozen=True)
class Collection(Generic[T]):
    """A kind of resource: its path and its type."""

    path: str
    kind: type[T]

    async def page(self, service: Service, limit: int, cursor: str | None, **filters: str | int) -> Page[T]:
        params: dict[str, str | int | float] = {"limit": limit, **filters}
        if cursor is not None:
            params["cursor"] = cursor
        return parse(await service.send(Request("GET", self.path, params)), Page[self.kind])  # type: ignore[name-defined]

    async def get(self, service: Service, resource_id: str) -> T:
        return parse(await service.send(Request("GET", f"{self.path}/{segment(resource_id)}")), self.kind)

    async def create(self, service: Service, body: msgspec.Struct, read_timeout: float | None = None) -> T:
        request = Request("POST", self.path, body=body, read_timeout=read_timeout)
        return parse(await service.send(request), self.kind)

    async def delete(self, service: Service, resource_id: str) -> Deleted:
        reply = await service.attempt(Request("DELETE", f"{self.path}/{segment(resource_id)}"))
        if reply.status == 404 and reply.attempts > 1:
            # The first attempt did it; only its answer was lost.
            return Deleted(id=resource_id)
        return parse(check(reply), Deleted)


MODELS = Collection("v1/models", Model)
ADAPTERS = Collection("v1/adapters", Adapter)
DATASETS = Collection("v1/datasets", Dataset)
UPLOADS = Collection("v1/uploads", Upload)
AUDITS = Collection("v1/audits", Audit)
STEERED = Collection("v1/steered-adapters", SteeredAdapter)
KEYS = Collection("v1/keys", APIKey)


async def create_upload(service: Service, purpose: UploadPurpose, path: Path) -> Upload:
    files = files_for(purpose, path)
    return await upload(service, purpose, files, await describe(service, purpose, files))


async def create_model(
    service: Service,
    source: str | Path | None,
    name: str | None,
    hub_id: str | None,
    revision: str | None,
) -> Model:
    if (source is None) == (hub_id is None):
        raise UsageError("a model comes either from a folder or from a hub: give source or hub_id")
    if hub_id is not None:
        return await MODELS.create(
            service, ModelCreate(name=name or hub_id, hub_id=hub_id, revision=revision)
        )
    if revision is not None:
        raise UsageError("revision goes with hub_id")
    path = Path(source or "")
    sent = await create_upload(service, "model", path)
    return await MODELS.create(service, ModelCreate(name=name or _name(path), upload_id=sent.id))


async def create_adapter(service: Service, source: str | Path, name: str | None) -> Adapter:
    path = Path(source)
    sent = await create_upload(service, "adapter", path)
    return await ADAPTERS.create(service, AdapterCreate(name=name or _name(path), upload_id=sent.id))


async def create_dataset(service: Service, source: str | Path, name: str | None) -> Dataset:
    path = Path(source)
    sent = await create_upload(service, "dataset", path)
    return await DATASETS.create(service, DatasetCreate(name=name or _name(path), upload_id=sent.id))


async def create_audit(
    service: Service,
    *,
    base_model: str | Path,
    adapter: str | Path,
    dataset: str | Path,
    preset: PresetName | None,
    config: AuditConfig | Mapping[str, Any] | None,
    name: str | None,
    metadata: Mapping[str, str] | None,
) -> Audit:
    """Create the audit, uploading what was given as a path; everything is checked before anything is sent."""
    settings = checked_settings(config, preset)
    inputs = [
        _Input("model", base_model, "mdl", MODELS, ModelCreate),
        _Input("adapter", adapter, "ada", ADAPTERS, AdapterCreate),
        _Input("dataset", dataset, "ds", DATASETS, DatasetCreate),
    ]
    files = [
        [] if is_id(given.reference, given.prefix) else files_for(given.purpose, Path(given.reference))
        for given in inputs
    ]
    ids = [await _input_id(service, given, paths) for given, paths in zip(inputs, files, strict=True)]
    body = AuditCreate(
        base_model=ids[0],
        adapter=ids[1],
        dataset=ids[2],
        name=name,
        preset=preset or "default",
        config=settings,
        metadata=dict(metadata or {}),
    )
    return await AUDITS.create(service, body)


async def refit_audit(
    service: Service,
    audit: Audit,
    preset: PresetName | None,
    config: Mapping[str, Any] | None,
    name: str | None,
    metadata: Mapping[str, str] | None,
) -> Audit:
    """Create a refit of an audit; its settings are checked before anything is sent."""
    body = RefitCreate(
        name=name,
        preset=preset,
        config=checked_refit(audit.config, config, preset),
        metadata=dict(metadata or {}),
    )
    path = f"v1/audits/{segment(audit.id)}/refits"
    return parse(await service.send(Request("POST", path, body=body)), Audit)


@dataclass(frozen=True)
class _Input:
    purpose: UploadPurpose
    reference: str | Path
    prefix: str
    collection: Collection[Any]
    body: Callable[..., msgspec.Struct]


def _format(known: Any) -> str | None:  # noqa: ANN401  (a resource of any kind)
    """The format of a data set, which says how its bytes are read; None of other resources."""
    return known.format if isinstance(known, Dataset) else None


async def _input_id(service: Service, given: _Input, files: list[Path]) -> str:
    """The id of an input; one of the same content that the project holds is used rather than sent again."""
    if not files:
        return str(given.reference)
    specs = await describe(service, given.purpose, files)
    digest = content_digest(given.purpose, specs)
    cursor: str | None = None
    for _ in range(_PAGES_SEARCHED):
        page = await given.collection.page(service, PAGE, cursor)
        for known in page.data:
            is_same = known.sha256 == digest and _format(known) in (None, dataset_format(files[0].name))
            if is_same and getattr(known, "status", "ready") == "ready":
                return known.id
        cursor = next_cursor(page, cursor)
        if cursor is None:
            break
    sent = await upload(service, given.purpose, files, specs)
    name = _name(Path(given.reference))
    return (await given.collection.create(service, given.body(name=name, upload_id=sent.id))).id


def _name(path: Path) -> str:
    """What to call a resource made of `path`."""
    return path.resolve().name[:200] or "unnamed"


async def cancel_audit(service: Service, audit_id: str) -> Audit:
    return parse(await service.send(Request("POST", f"v1/audits/{segment(audit_id)}/cancel")), Audit)


async def delete_gradients(service: Service, audit_id: str) -> Audit:
    return parse(await service.send(Request("DELETE", f"v1/audits/{segment(audit_id)}/gradients")), Audit)


async def audit_report(service: Service, audit_id: str) -> AuditReport:
    return parse(await service.send(Request("GET", f"v1/audits/{segment(audit_id)}/report")), AuditReport)


async def audit_atoms(service: Service, audit_id: str) -> list[Atom]:
    """Every atom, by rank."""
    return await _all(service, f"v1/audits/{segment(audit_id)}/atoms", Atom, {"sort": "rank"}, None)


async def atom_documents(
    service: Service, audit_id: str, index: int, sign: str, limit: int | None
) -> list[DocumentMatch]:
    check_sign(sign)
    path = f"v1/audits/{segment(audit_id)}/atoms/{index}/documents"
    return await _all(service, path, DocumentMatch, {"sign": sign}, limit)


async def audit_behaviours(service: Service, audit_id: str) -> list[Behaviour]:
    """Every behaviour, by rank, the list of its documents left out."""
    return await _all(service, f"v1/audits/{segment(audit_id)}/behaviours", Behaviour, {}, None)


async def audit_hierarchy(service: Service, audit_id: str) -> Hierarchy:
    return parse(await service.send(Request("GET", f"v1/audits/{segment(audit_id)}/hierarchy")), Hierarchy)


async def behaviour_documents(
    service: Service, audit_id: str, index: int, limit: int | None
) -> list[DocumentMatch]:
    path = f"v1/audits/{segment(audit_id)}/behaviours/{index}/documents"
    return await _all(service, path, DocumentMatch, {}, limit)


async def _all(
    service: Service, path: str, kind: type[T], filters: Mapping[str, str], limit: int | None
) -> list[T]:
    collection = Collection(path, kind)
    found: list[T] = []
    cursor: str | None = None
    while limit is None or len(found) < limit:
        wanted = PAGE if limit is None else min(PAGE, limit - len(found))
        page = await collection.page(service, wanted, cursor, **filters)
        found += page.data
        cursor = next_cursor(page, cursor)
        if cursor is None:
            break
    return found[:limit]


async def atom_vector(service: Service, audit_id: str, index: int) -> dict[str, NDArray[np.float32]]:
    answer = await service.send(
        Request(
            "GET",
            f"v1/audits/{segment(audit_id)}/atoms/{index}/vector",
            headers={"Accept": "application/octet-stream"},
        )
    )
    try:
        return load(answer.content)
    except (SafetensorError, KeyError, ValueError, struct.error) as error:
        raise unreadable(answer, f"the vector of atom {index} is not safetensors: {error}") from error


async def steer_audit(
    service: Service,
    audit_id: str,
    strengths: GivenStrengths,
    name: str | None,
    form: Format,
    unit: Unit,
    power: VectorPower | None,
    search: Search,
) -> SteeredAdapter:
    numbers = await settled(service, audit_id, strengths, unit=unit, power=power, search=search)
    wanted = strengths_by_target(numbers, audit_id)
    check_strengths(wanted)
    body = SteeredAdapterCreate(
        audit=audit_id,
        strengths={target.key: strength for target, strength in wanted.items()},
        name=name,
        format=form,
        unit=unit,
        power=power,
    )
    return await STEERED.create(service, body, _STEERING_SECONDS)


async def create_key(service: Service, name: str) -> APIKey:
    return await KEYS.create(service, APIKeyCreate(name=name))


async def health(service: Service) -> Health:
    reply = await service.attempt(Request("GET", "readyz"))
    # A degraded service says what is wrong in the same form, under 503.
    return parse(reply if reply.status == 503 else check(reply), Health)


async def presets(service: Service) -> list[Preset]:
    return parse(await service.send(Request("GET", "v1/presets")), Page[Preset]).data


async def raw(
    service: Service,
    method: str,
    path: str,
    params: Params | None,
    body: object,
    headers: Mapping[str, str] | None,
) -> Reply:
    """Any request of the API, with its retries and exceptions."""
    if "://" in path or not path.startswith("/"):
        raise UsageError(f"not a path of the API, such as /v1/audits: {path!r}")
    return await service.send(Request(method.upper(), path, params or {}, body, headers or {}))
