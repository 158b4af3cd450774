"""Every call of the API, once, as coroutines over a `Transport`; both clients are thin over these."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from atomscope.client._references import is_id
from atomscope.client._transport import Transport
from atomscope.client._uploads import files_for, upload
from atomscope.client._wire import Request, parse
from atomscope.errors import APIError
from atomscope.types.atoms import Atom, AuditReport
from atomscope.types.resources import (
    Adapter,
    AdapterCreate,
    APIKey,
    APIKeyCreate,
    Audit,
    AuditCreate,
    Dataset,
    DatasetCreate,
    Deleted,
    DocumentMatch,
    Health,
    Model,
    ModelCreate,
    Page,
    SteeredAdapter,
    SteeredAdapterCreate,
    Upload,
    UploadPurpose,
)
from atomscope.types.spec import AuditConfig

T = TypeVar("T")

PAGE = 100
"""Resources asked for at a time when all are wanted."""


@dataclass(frozen=True)
class Collection(Generic[T]):
    """A kind of resource: its path and its type."""

    path: str
    kind: type[T]

    async def page(
        self, transport: Transport, limit: int, cursor: str | None, **filters: str | int
    ) -> Page[T]:
        params: dict[str, str | int | float] = {"limit": limit, **filters}
        if cursor is not None:
            params["cursor"] = cursor
        return parse(await transport.send(Request("GET", self.path, params)), Page[self.kind])  # type: ignore[name-defined]

    async def get(self, transport: Transport, resource_id: str) -> T:
        return parse(await transport.send(Request("GET", f"{self.path}/{_segment(resource_id)}")), self.kind)

    async def create(self, transport: Transport, body: msgspec.Struct) -> T:
        return parse(await transport.send(Request("POST", self.path, body=body)), self.kind)

    async def delete(self, transport: Transport, resource_id: str) -> Deleted:
        request = Request("DELETE", f"{self.path}/{_segment(resource_id)}")
        return parse(await transport.send(request), Deleted)


MODELS = Collection("v1/models", Model)
ADAPTERS = Collection("v1/adapters", Adapter)
DATASETS = Collection("v1/datasets", Dataset)
UPLOADS = Collection("v1/uploads", Upload)
AUDITS = Collection("v1/audits", Audit)
STEERED = Collection("v1/steered-adapters", SteeredAdapter)
KEYS = Collection("v1/keys", APIKey)


async def create_model(
    transport: Transport,
    source: str | Path | None,
    name: str | None,
    hub_id: str | None,
    revision: str | None,
) -> Model:
    if source is None:
        body = ModelCreate(name=name or hub_id or "model", hub_id=hub_id, revision=revision)
    else:
        upload_id, file_name = await _uploaded(transport, "model", Path(source))
        body = ModelCreate(name=name or file_name, upload_id=upload_id)
    return await MODELS.create(transport, body)


async def create_adapter(transport: Transport, source: str | Path, name: str | None) -> Adapter:
    upload_id, file_name = await _uploaded(transport, "adapter", Path(source))
    return await ADAPTERS.create(transport, AdapterCreate(name=name or file_name, upload_id=upload_id))


async def create_dataset(transport: Transport, source: str | Path, name: str | None) -> Dataset:
    upload_id, file_name = await _uploaded(transport, "dataset", Path(source))
    return await DATASETS.create(transport, DatasetCreate(name=name or file_name, upload_id=upload_id))


async def _uploaded(transport: Transport, purpose: UploadPurpose, path: Path) -> tuple[str, str]:
    done = await upload(transport, purpose, files_for(purpose, path))
    return done.id, path.resolve().name[:200]


async def create_audit(
    transport: Transport,
    base_model: str | Path,
    adapter: str | Path,
    dataset: str | Path,
    config: AuditConfig | Mapping[str, Any] | None,
    name: str | None,
    metadata: Mapping[str, str] | None,
) -> Audit:
    """Create the audit, uploading what was given as a path; every reference is checked first."""
    settings = msgspec.convert(config or {}, AuditConfig) if not isinstance(config, AuditConfig) else config
    by_path = [not is_id(base_model, "mdl"), not is_id(adapter, "ada"), not is_id(dataset, "ds")]
    model_id = (
        (await create_model(transport, base_model, None, None, None)).id if by_path[0] else str(base_model)
    )
    adapter_id = (await create_adapter(transport, adapter, None)).id if by_path[1] else str(adapter)
    dataset_id = (await create_dataset(transport, dataset, None)).id if by_path[2] else str(dataset)
    body = AuditCreate(
        base_model=model_id,
        adapter=adapter_id,
        dataset=dataset_id,
        name=name,
        config=settings,
        metadata=dict(metadata or {}),
    )
    return await AUDITS.create(transport, body)


async def cancel_audit(transport: Transport, audit_id: str) -> Audit:
    return parse(await transport.send(Request("POST", f"v1/audits/{audit_id}/cancel")), Audit)


async def audit_report(transport: Transport, audit_id: str) -> AuditReport:
    return parse(await transport.send(Request("GET", f"v1/audits/{audit_id}/report")), AuditReport)


async def audit_atoms(transport: Transport, audit_id: str) -> list[Atom]:
    """Every atom, by rank."""
    return await _all(transport, f"v1/audits/{audit_id}/atoms", Atom, {"sort": "rank"}, None)


async def atom_documents(
    transport: Transport, audit_id: str, index: int, sign: str, limit: int | None
) -> list[DocumentMatch]:
    path = f"v1/audits/{audit_id}/atoms/{index}/documents"
    return await _all(transport, path, DocumentMatch, {"sign": sign}, limit)


async def _all(
    transport: Transport, path: str, kind: type[T], filters: Mapping[str, str], limit: int | None
) -> list[T]:
    collection = Collection(path, kind)
    found: list[T] = []
    cursor: str | None = None
    while limit is None or len(found) < limit:
        wanted = PAGE if limit is None else min(PAGE, limit - len(found))
        page = await collection.page(transport, wanted, cursor, **filters)
        found += page.data
        cursor = page.next
        if not page.has_more or cursor is None:
            break
    return found


async def atom_vector(transport: Transport, audit_id: str, index: int) -> dict[str, NDArray[np.float32]]:
    answer = await transport.send(
        Request(
            "GET",
            f"v1/audits/{audit_id}/atoms/{index}/vector",
            headers={"Accept": "application/octet-stream"},
        )
    )
    try:
        return load(answer.content)
    except (SafetensorError, KeyError, ValueError, struct.error) as error:
        raise APIError(f"the vector of atom {index} is not safetensors: {error}") from error


async def steer_audit(
    transport: Transport, audit_id: str, strengths: Mapping[int, float], name: str | None
) -> SteeredAdapter:
    body = SteeredAdapterCreate(
        audit=audit_id, strengths={str(atom): strength for atom, strength in strengths.items()}, name=name
    )
    return await STEERED.create(transport, body)


async def create_key(transport: Transport, name: str) -> APIKey:
    return await KEYS.create(transport, APIKeyCreate(name=name))


async def health(transport: Transport) -> Health:
    return parse(await transport.send(Request("GET", "readyz")), Health)


def _segment(resource_id: str) -> str:
    """One path segment; an id never holds anything else."""
    if not resource_id or not all(character.isalnum() or character in "_-" for character in resource_id):
        raise ValueError(f"not an id: {resource_id!r}")
    return resource_id
