"""`/v1/audits/{id}/atoms` and the rest of what an audit found, read from its bundle."""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Any, Literal, cast

import anyio.to_thread
import msgspec
from litestar import Controller, Request, Response, get
from litestar.params import FromPath, FromQuery, PathParameter, QueryParameter
from litestar.response import Stream

from atomscope.bundle import Bundle, layout
from atomscope.bundle.atom_list import SortKey
from atomscope.bundle.behaviour_list import SortKey as BehaviourSortKey
from atomscope.types.atoms import Atom, AuditReport, Behaviour
from atomscope.types.bundle import FileEntry
from atomscope.types.hierarchy import Hierarchy
from atomscope.types.resources import AtomPage, BehaviourPage, BundleFile, BundleListing, DocumentMatch, Page
from atomscope_service.api.conditional import conditional, matches, tagged
from atomscope_service.api.documents import behaviour_documents, document_matches
from atomscope_service.api.paging import DEFAULT_LIMIT, Cursor, Limit, list_offsets
from atomscope_service.api.problems import ProblemError, invalid, not_found
from atomscope_service.api.services import CurrentTenant, Tenant, found
from atomscope_service.api.streams import stream_object
from atomscope_service.uploads.service import transfer_of

Sort = Literal[
    "rank",
    "-rank",
    "score",
    "-score",
    "coherence",
    "-coherence",
    "n_active",
    "-n_active",
    "mean_coefficient",
    "-mean_coefficient",
]
BehaviourSort = Literal[
    "rank",
    "-rank",
    "score",
    "-score",
    "coherence",
    "-coherence",
    "n_documents",
    "-n_documents",
    "share",
    "-share",
]
Sign = Literal["positive", "negative"]
AtomIndex = Annotated[int, PathParameter(ge=0, lt=2**31)]


def open_audit_bundle(tenant: Tenant, audit_id: str) -> tuple[Bundle, str]:
    """The bundle of an audit and its key prefix; raises 404, and 409 unless the audit has succeeded."""
    with tenant.read() as repositories:
        row = found(repositories.audits, audit_id, "audit")
    if row.status != "succeeded" or row.bundle_prefix is None:
        raise ProblemError(409, "audit_not_succeeded", f"This audit is {row.status}, not succeeded.")
    return tenant.services.bundles.open(row.bundle_prefix), row.bundle_prefix


def atom_of(bundle: Bundle, index: int) -> Atom:
    """An atom by its index; raises 404."""
    for handle in bundle.atoms:
        if handle.index == index:
            return handle.atom
    raise not_found("atom")


def behaviour_of(bundle: Bundle, index: int) -> Behaviour:
    """A behaviour by its index; raises 404."""
    for handle in bundle.behaviours:
        if handle.index == index:
            return handle.behaviour
    raise not_found("behaviour")


def listed(behaviour: Behaviour) -> Behaviour:
    """A behaviour without the list of its documents, which pages of its own give."""
    return msgspec.structs.replace(behaviour, documents=[])


def entry_of(bundle: Bundle, path: str, what: str) -> FileEntry:
    """A file of the bundle as its manifest lists it; raises 404."""
    for entry in bundle.manifest.files:
        if entry.path == path:
            return entry
    raise not_found(what)


class FindingsController(Controller):
    path = "/v1/audits/{audit_id:str}"
    tags = ["findings"]  # noqa: RUF012

    @get("/atoms", operation_id="listAtoms", sync_to_thread=True)
    def list_atoms(
        self,
        *,
        tenant: CurrentTenant,
        audit_id: FromPath[str],
        sort: FromQuery[Sort] = "rank",
        min_coherence: Annotated[float | None, QueryParameter(ge=-1, le=1)] = None,
        min_active: Annotated[int | None, QueryParameter(ge=0)] = None,
        keyword: Annotated[str | None, QueryParameter(max_length=200)] = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> AtomPage:
        """Atoms by rank, unless `sort` says otherwise; `keyword` is matched whole, whatever its case."""
        if min_coherence is not None and not math.isfinite(min_coherence):
            raise invalid("min_coherence", "it must be a finite number")
        bundle, prefix = open_audit_bundle(tenant, audit_id)
        kept = bundle.atoms.filter(min_coherence=min_coherence, min_active=min_active, keyword=keyword)
        key = cast("SortKey", sort.removeprefix("-"))
        atoms = [handle.atom for handle in kept.sort_by(key, descending=sort.startswith("-"))]
        wanted = ["atoms", prefix, sort, min_coherence, min_active, keyword]
        listing = msgspec.json.encode(wanted).decode()
        data, following = list_offsets(tenant, listing, atoms, limit=limit, cursor=cursor)
        return AtomPage(data=data, has_more=following is not None, next=following)

    @get("/atoms/{index:int}", operation_id="getAtom", sync_to_thread=True)
    def read_atom(
        self,
        request: Request[Any, Any, Any],
        tenant: CurrentTenant,
        audit_id: FromPath[str],
        index: AtomIndex,
    ) -> Response[Atom]:
        """One atom, by its index."""
        bundle, _ = open_audit_bundle(tenant, audit_id)
        return conditional(request, atom_of(bundle, index))

    @get("/atoms/{index:int}/documents", operation_id="listAtomDocuments", sync_to_thread=True)
    def list_documents(
        self,
        *,
        tenant: CurrentTenant,
        audit_id: FromPath[str],
        index: AtomIndex,
        sign: FromQuery[Sign] = "positive",
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Page[DocumentMatch]:
        """Documents of one sign of an atom with their text, strongest first."""
        bundle, prefix = open_audit_bundle(tenant, audit_id)
        atom_of(bundle, index)
        listing = msgspec.json.encode(["documents", prefix, index, sign]).decode()
        ranked = document_matches(bundle, index, sign)
        rows, following = list_offsets(tenant, listing, ranked.rows, limit=limit, cursor=cursor)
        return Page(data=ranked.texts(rows), has_more=following is not None, next=following)

    @get(
        "/atoms/{index:int}/vector",
        operation_id="getAtomVector",
        media_type="application/octet-stream",
    )
    async def read_vector(
        self,
        request: Request[Any, Any, Any],
        tenant: CurrentTenant,
        audit_id: FromPath[str],
        index: AtomIndex,
    ) -> Stream:
        """The steering vector of an atom: a safetensors file, one tensor a LoRA parameter."""
        bundle, prefix = await anyio.to_thread.run_sync(open_audit_bundle, tenant, audit_id)
        entry = entry_of(bundle, layout.vector(index), "atom")
        etag = f'"{entry.sha256[:32]}"'
        if matches(request, etag):
            return Stream(iter(()), status_code=304, headers={"ETag": etag})
        name = f"{audit_id}-atom-{index:04d}.safetensors"
        return Stream(
            stream_object(tenant.services.store, f"{prefix}{entry.path}", 0, entry.size),
            media_type="application/octet-stream",
            headers={
                "ETag": etag,
                "Content-Length": str(entry.size),
                "Content-Disposition": f'attachment; filename="{name}"',
            },
        )

    @get("/behaviours", operation_id="listBehaviours", sync_to_thread=True)
    def list_behaviours(
        self,
        *,
        tenant: CurrentTenant,
        audit_id: FromPath[str],
        sort: FromQuery[BehaviourSort] = "rank",
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> BehaviourPage:
        """Behaviours by rank, unless `sort` says otherwise; the documents of each are listed apart."""
        bundle, prefix = open_audit_bundle(tenant, audit_id)
        key = cast("BehaviourSortKey", sort.removeprefix("-"))
        ordered = bundle.behaviours.sort_by(key, descending=sort.startswith("-"))
        shown = [listed(handle.behaviour) for handle in ordered]
        listing = msgspec.json.encode(["behaviours", prefix, sort]).decode()
        data, following = list_offsets(tenant, listing, shown, limit=limit, cursor=cursor)
        return BehaviourPage(data=data, has_more=following is not None, next=following)

    @get("/behaviours/{index:int}", operation_id="getBehaviour", sync_to_thread=True)
    def read_behaviour(
        self,
        request: Request[Any, Any, Any],
        tenant: CurrentTenant,
        audit_id: FromPath[str],
        index: AtomIndex,
    ) -> Response[Behaviour]:
        """One behaviour, by its index."""
        bundle, _ = open_audit_bundle(tenant, audit_id)
        return conditional(request, listed(behaviour_of(bundle, index)))

    @get("/behaviours/{index:int}/documents", operation_id="listBehaviourDocuments", sync_to_thread=True)
    def list_behaviour_documents(
        self,
        *,
        tenant: CurrentTenant,
        audit_id: FromPath[str],
        index: AtomIndex,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Page[DocumentMatch]:
        """Documents of a behaviour with their text, strongest first; `value` is the strength."""
        bundle, prefix = open_audit_bundle(tenant, audit_id)
        ranked = behaviour_documents(bundle, behaviour_of(bundle, index))
        listing = msgspec.json.encode(["behaviour documents", prefix, index]).decode()
        rows, following = list_offsets(tenant, listing, ranked.rows, limit=limit, cursor=cursor)
        return Page(data=ranked.texts(rows), has_more=following is not None, next=following)

    @get("/hierarchy", operation_id="getHierarchy", sync_to_thread=True)
    def read_hierarchy(
        self, request: Request[Any, Any, Any], tenant: CurrentTenant, audit_id: FromPath[str]
    ) -> Response[Hierarchy]:
        """The tree over the atoms whose cut is the behaviours."""
        bundle, _ = open_audit_bundle(tenant, audit_id)
        if all(entry.path != layout.HIERARCHY for entry in bundle.manifest.files):
            detail = "This audit was made before the tree over its atoms was kept: audit again."
            raise ProblemError(409, "old_bundle", detail)
        return conditional(request, bundle.hierarchy)

    @get("/report", operation_id="getReport", sync_to_thread=True)
    def read_report(
        self, request: Request[Any, Any, Any], tenant: CurrentTenant, audit_id: FromPath[str]
    ) -> Response[AuditReport]:
        """The audit in one page."""
        bundle, _ = open_audit_bundle(tenant, audit_id)
        entry = entry_of(bundle, layout.REPORT, "report")
        return tagged(request, bundle.report, f'"{entry.sha256[:32]}"')

    @get("/bundle", operation_id="getBundle", sync_to_thread=True)
    def read_bundle(self, tenant: CurrentTenant, audit_id: FromPath[str]) -> BundleListing:
        """Every file of the bundle with a short-lived link, the manifest first; no gradients once expired."""
        bundle, prefix = open_audit_bundle(tenant, audit_id)
        transfer = transfer_of(tenant.services)
        manifest = tenant.services.store.get_bytes(f"{prefix}{layout.MANIFEST}")
        digest = hashlib.sha256(manifest).hexdigest()
        expired = set(bundle.manifest.shared or {}) if bundle.gradients_kept == "expired" else set[str]()
        entries = [
            FileEntry(path=layout.MANIFEST, size=len(manifest), sha256=digest),
            *(entry for entry in bundle.manifest.files if entry.path not in expired),
        ]
        files = [
            BundleFile(
                path=entry.path,
                size=entry.size,
                sha256=entry.sha256,
                url=transfer.download_url(bundle.key(entry.path)),
            )
            for entry in entries
        ]
        return BundleListing(
            audit_id=audit_id,
            format_version=bundle.manifest.format_version,
            size=sum(file.size for file in files),
            files=files,
        )
