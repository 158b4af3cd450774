"""`/v1/steered-adapters`: an audited adapter moved along the vectors of chosen atoms and behaviours."""

from __future__ import annotations

import math
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import msgspec
from litestar import Controller, Request, Response, delete, get, post
from litestar.params import FromPath, JSONBody

from atomscope.bundle import Bundle, layout, needed_files
from atomscope.errors import SteeringError, StrengthError
from atomscope.steering import Target, parse_target
from atomscope.types.resources import (
    Deleted,
    FileDownload,
    Page,
    SteeredAdapter,
    SteeredAdapterCreate,
    SteeredAdapterDownload,
)
from atomscope.types.spec import VectorPower
from atomscope.types.steering import Format, Unit
from atomscope_service.api.announce import announce
from atomscope_service.api.atoms import open_audit_bundle
from atomscope_service.api.conditional import conditional
from atomscope_service.api.paging import DEFAULT_LIMIT, Cursor, Limit, list_rows
from atomscope_service.api.problems import ProblemError, unknown_reference
from atomscope_service.api.services import CurrentTenant, Tenant, found
from atomscope_service.api.times import rfc3339
from atomscope_service.db.models import SteeredAdapterRow
from atomscope_service.ids import new_id
from atomscope_service.uploads.service import transfer_of

_one_at_a_time = threading.Lock()
"""Steering holds an adapter and its vectors in memory, so requests take turns."""


class StoredOutput(msgspec.Struct, frozen=True):
    """A file of a steered adapter, as its row holds it."""

    path: str
    size: int


def render_steered(row: SteeredAdapterRow) -> SteeredAdapter:
    """A row as the API shows it."""
    return SteeredAdapter(
        id=row.id,
        name=row.name,
        audit=row.audit_id,
        strengths=row.strengths,
        format=cast("Format", row.format),
        unit=cast("Unit", row.unit),
        power=cast("VectorPower | None", row.power),
        size=row.size,
        created_at=rfc3339(row.created_at),
    )


def create_steered(tenant: Tenant, request: SteeredAdapterCreate) -> SteeredAdapterRow:
    """Steer the adapter of an audit and store the files.

    Raises 422 for an unknown audit, atom or behaviour, for strengths that cannot be met and for a format that
    is not written for the adapter or its base; 409 unless the audit has succeeded.
    """
    strengths = _by_target(request.strengths)
    with tenant.read() as repositories:
        if repositories.audits.get(request.audit) is None:
            raise unknown_reference("audit", "audit")
    bundle, _ = open_audit_bundle(tenant, request.audit)
    _check_targets(bundle, strengths)
    _check_size(bundle, strengths, request.power, tenant.services.settings.max_steering_bytes)
    steered_id = new_id("str")
    prefix = f"projects/{tenant.project_id}/steered/{steered_id}/"
    store = tenant.services.store
    outputs: list[StoredOutput] = []
    with tempfile.TemporaryDirectory(prefix="atomscope-steer-") as folder:
        try:
            with _one_at_a_time:
                by_key = {target.key: strength for target, strength in strengths.items()}
                steered = bundle.steer(by_key, format=request.format, unit=request.unit, power=request.power)
                saved = steered.save(Path(folder, "adapter"))
        except StrengthError as error:
            raise ProblemError(422, "strength_too_large", str(error), param="strengths") from error
        except SteeringError as error:
            raise ProblemError(422, "cannot_steer", str(error), param="strengths") from error
        for path in sorted(saved.iterdir()):
            outputs.append(StoredOutput(path.name, path.stat().st_size))
            store.put_file(f"{prefix}{path.name}", path)
    row = SteeredAdapterRow(
        id=steered_id,
        project_id=tenant.project_id,
        created_at=datetime.now(UTC),
        name=request.name,
        audit_id=request.audit,
        strengths={target.key: strength for target, strength in strengths.items()},
        format=request.format,
        unit=request.unit,
        power=steered.provenance.power,
        prefix=prefix,
        files=msgspec.to_builtins(outputs),
        size=sum(output.size for output in outputs),
    )
    with tenant.write() as repositories:
        return repositories.steered_adapters.add(row)


def _by_target(strengths: dict[str, float]) -> dict[Target, float]:
    found: dict[Target, float] = {}
    for name, strength in strengths.items():
        try:
            target = parse_target(name)
        except SteeringError as error:
            raise ProblemError(422, "not_found", str(error), param="strengths") from error
        if target in found:
            raise ProblemError(422, "cannot_steer", f"{target} is named twice.", param="strengths")
        if not math.isfinite(strength):
            raise ProblemError(422, "cannot_steer", "A strength is not finite.", param="strengths")
        found[target] = strength
    return found


def _check_targets(bundle: Bundle, strengths: dict[Target, float]) -> None:
    known = {Target("atom", handle.index) for handle in bundle.atoms}
    known |= {Target("behaviour", handle.index) for handle in bundle.behaviours}
    unknown = sorted(strengths.keys() - known)
    if unknown:
        raise ProblemError(
            422, "not_found", f"This audit has no {unknown[0]}.", param=f"strengths.{unknown[0].key}"
        )


def _check_size(
    bundle: Bundle, strengths: dict[Target, float], power: VectorPower | None, limit: int
) -> None:
    try:
        needed = {layout.ADAPTER_WEIGHTS, *needed_files(bundle, strengths, power)}
    except SteeringError as error:
        raise ProblemError(422, "cannot_steer", str(error), param="strengths") from error
    size = sum(entry.size for entry in bundle.manifest.files if entry.path in needed)
    if size > limit:
        detail = f"What this takes of the bundle holds {size} bytes; {limit} are accepted: name fewer."
        raise ProblemError(422, "steering_too_large", detail, param="strengths")


class SteeredAdapterController(Controller):
    path = "/v1/steered-adapters"
    tags = ["steered adapters"]  # noqa: RUF012

    @post(operation_id="createSteeredAdapter", sync_to_thread=True)
    def create(self, tenant: CurrentTenant, data: JSONBody[SteeredAdapterCreate]) -> Response[SteeredAdapter]:
        """Make an adapter from an audit's, its atoms and behaviours turned up or down, in a format."""
        row = create_steered(tenant, data)
        return Response(render_steered(row), headers={"Location": f"/v1/steered-adapters/{row.id}"})

    @get(operation_id="listSteeredAdapters", sync_to_thread=True)
    def list_page(
        self, tenant: CurrentTenant, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
    ) -> Page[SteeredAdapter]:
        """Steered adapters, newest first."""
        return list_rows(
            tenant, lambda rows: rows.steered_adapters, render_steered, limit=limit, cursor=cursor
        )

    @get("/{steered_id:str}", operation_id="getSteeredAdapter", sync_to_thread=True)
    def read(
        self, request: Request[Any, Any, Any], tenant: CurrentTenant, steered_id: FromPath[str]
    ) -> Response[SteeredAdapter]:
        """One steered adapter."""
        with tenant.read() as repositories:
            row = found(repositories.steered_adapters, steered_id, "steered adapter")
        return conditional(request, render_steered(row))

    @get("/{steered_id:str}/download", operation_id="downloadSteeredAdapter", sync_to_thread=True)
    def download(self, tenant: CurrentTenant, steered_id: FromPath[str]) -> SteeredAdapterDownload:
        """Its files with short-lived links."""
        with tenant.read() as repositories:
            row = found(repositories.steered_adapters, steered_id, "steered adapter")
        transfer = transfer_of(tenant.services)
        files = [
            FileDownload(
                path=output.path, size=output.size, url=transfer.download_url(f"{row.prefix}{output.path}")
            )
            for output in msgspec.convert(row.files, list[StoredOutput])
        ]
        return SteeredAdapterDownload(id=row.id, files=files)

    @delete("/{steered_id:str}", operation_id="deleteSteeredAdapter", status_code=200, sync_to_thread=True)
    def remove(self, tenant: CurrentTenant, steered_id: FromPath[str]) -> Deleted:
        """Delete a steered adapter and its files."""
        with tenant.write() as repositories:
            row = found(repositories.steered_adapters, steered_id, "steered adapter", lock=True)
            repositories.deletions.add_prefix(row.prefix)
            repositories.steered_adapters.remove(row)
        announce(tenant.services.queue.deletions_added)
        return Deleted(id=steered_id)
