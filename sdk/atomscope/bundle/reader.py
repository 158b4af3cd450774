"""Reading a bundle: from a folder or an S3 prefix, with no server and no torch."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from atomscope.bundle import layout
from atomscope.bundle._json import decode
from atomscope.bundle.atom_list import AtomAttributes, AtomList, strengths_by_index
from atomscope.bundle.documents import read_documents
from atomscope.bundle.tables import Coefficients, read_coefficients
from atomscope.errors import BundleError, SteeringError
from atomscope.steering import SteeredAdapter, read_tensors, steer_folder
from atomscope.store import LocalStore, ObjectNotFound, ObjectStore, StoreError, check_key, open_store
from atomscope.text import visible
from atomscope.types.atoms import Atom, AuditReport, DocumentRecord
from atomscope.types.bundle import FileEntry, Manifest, Plan
from atomscope.types.resources import DocumentMatch
from atomscope.types.spec import FORMAT_VERSION, AuditSpec

Sign = Literal["positive", "negative"]

ACTIVE = 1e-6
"""A code is active above this magnitude (section 3.4)."""


class _Version(msgspec.Struct):
    """Of a manifest, only its version: a newer one may have another shape."""

    format_version: int


class Bundle:
    """A committed audit bundle. Files are read when they are asked for, then kept.

    Every access raises `BundleError` when a file is missing or damaged, `StoreError` when the store fails.
    """

    def __init__(self, store: ObjectStore, prefix: str = "") -> None:
        self._store = store
        self._prefix = prefix
        self._cache: Path | None = None
        self.manifest = self._read_manifest()
        self._entries: dict[str, FileEntry] = {entry.path: entry for entry in self.manifest.files}

    def __repr__(self) -> str:
        return f"<Bundle of {visible(self.manifest.audit_id)}: {len(self._entries)} files>"

    @cached_property
    def spec(self) -> AuditSpec:
        return decode(self._path(layout.SPEC).read_bytes(), AuditSpec, layout.SPEC)

    @cached_property
    def plan(self) -> Plan:
        return decode(self._path(layout.PLAN).read_bytes(), Plan, layout.PLAN)

    @cached_property
    def report(self) -> AuditReport:
        return decode(self._path(layout.REPORT).read_bytes(), AuditReport, layout.REPORT)

    @cached_property
    def atoms(self) -> AtomList[BundleAtom]:
        """The atoms, by rank."""
        found = decode(self._path(layout.ATOMS).read_bytes(), list[Atom], layout.ATOMS)
        return AtomList([BundleAtom(self, atom) for atom in found])

    @cached_property
    def coefficients(self) -> Coefficients:
        """The sparse codes, signs resolved."""
        return read_coefficients(self._path(layout.COEFFICIENTS))

    @cached_property
    def documents(self) -> Mapping[int, DocumentRecord]:
        """The audited documents by physical row, rising."""
        return {record.document: record for record in read_documents(self._path(layout.DOCUMENTS))}

    def gradients(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Gradient shards in order: `document` int64 (rows,) and one tensor a parameter, (rows, *shape)."""
        from safetensors.numpy import load_file  # noqa: PLC0415  (only this reads integers)

        for shard in self.plan.shards:
            yield load_file(self._path(layout.gradient_shard(shard.index)))

    def vector(self, atom: int) -> dict[str, NDArray[np.float32]]:
        """Steering vector of the atom of that index: float32, named and shaped as the LoRA parameters."""
        if layout.vector(atom) not in self._entries:
            raise BundleError(f"the bundle holds no vector of atom {atom}")
        return dict(read_tensors(self._path(layout.vector(atom))))

    def matches(self, atom: int, sign: Sign = "positive", limit: int | None = None) -> list[DocumentMatch]:
        """Active documents of one sign of an atom, strongest first."""
        rows, values = self.coefficients.of_atom(atom)
        signed = values if sign == "positive" else -values
        active = np.flatnonzero(signed > ACTIVE)
        order = active[np.lexsort((rows[active], -signed[active]))][:limit]
        found: list[DocumentMatch] = []
        for position in order.tolist():
            record = self.documents.get(int(rows[position]))
            if record is None:
                raise BundleError(
                    f"{layout.COEFFICIENTS} names document {rows[position]}, which is not listed"
                )
            found.append(
                DocumentMatch(
                    document=record.document,
                    value=float(values[position]),
                    id=record.id,
                    messages=record.messages,
                    n_tokens=record.n_tokens,
                    n_target_tokens=record.n_target_tokens,
                    loss=record.loss,
                )
            )
        return found

    def steer(self, strengths: Mapping[AtomAttributes, float] | Mapping[int, float]) -> SteeredAdapter:
        """The audited adapter, moved along the vectors of the atoms named (by index or as atoms).

        Strengths are in units of the adapter's norm; positive means more of the behaviour. Raises
        `SteeringError`.
        """
        by_index = strengths_by_index(strengths)
        for atom in by_index:
            if layout.vector(atom) not in self._entries:
                raise SteeringError(f"this audit has no atom {atom}")
        self._path(layout.ADAPTER_CONFIG)
        adapter = self._path(layout.ADAPTER_WEIGHTS).parent
        vectors = {atom: self.vector(atom) for atom in by_index}
        return steer_folder(adapter, vectors, by_index, self.manifest.audit_id)

    def file(self, path: str) -> Path:
        """A local file with the content of `path` (fetched and kept when the store is not a folder)."""
        return self._path(path)

    def verify(self) -> None:
        """Read every file and compare its SHA-256; raises `BundleError` naming the first that differs."""
        for entry in self.manifest.files:
            digest = hashlib.sha256()
            with self._open(entry.path) as source:
                while block := source.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != entry.sha256:
                raise BundleError(f"{entry.path} is damaged: its SHA-256 is not that of the manifest")

    def _open(self, path: str) -> Any:  # noqa: ANN401  (a binary stream)
        try:
            return self._store.open_read(f"{self._prefix}{path}")
        except ObjectNotFound as error:
            raise BundleError(f"{path} is missing from the bundle") from error

    def _path(self, path: str) -> Path:
        """A local file with the content of `path`, whose size is that of the manifest."""
        entry = self._entries.get(path)
        if entry is None:
            raise BundleError(f"the bundle does not hold {path}")
        key = f"{self._prefix}{path}"
        local = self._store.local_path(key)
        if local is None:
            if self._cache is None:
                self._cache = Path(tempfile.mkdtemp(prefix="atomscope-bundle-"))
                # Removed with the last reference, or when the interpreter ends: a bundle needs no closing.
                weakref.finalize(self, shutil.rmtree, self._cache, ignore_errors=True)
            local = self._cache / path
        try:
            if self._store.local_path(key) is None and not local.exists():
                self._store.get_file(key, local)
            size = local.stat().st_size
        except (ObjectNotFound, FileNotFoundError) as error:
            raise BundleError(f"{path} is missing from the bundle") from error
        if size != entry.size:
            raise BundleError(f"{path} is damaged: {size} bytes where the manifest says {entry.size}")
        return local

    def _read_manifest(self) -> Manifest:
        try:
            data = self._store.get_bytes(f"{self._prefix}{layout.MANIFEST}")
        except ObjectNotFound as error:
            raise BundleError(
                "no manifest.json: not an audit bundle, or one whose audit has not finished"
            ) from error
        version = decode(data, _Version, layout.MANIFEST).format_version
        if version > FORMAT_VERSION:
            raise BundleError(
                f"the bundle is of format {version} and this version reads up to {FORMAT_VERSION}: "
                "upgrade atomscope"
            )
        manifest = decode(data, Manifest, layout.MANIFEST)
        for entry in manifest.files:
            try:
                check_key(entry.path)
            except StoreError as error:
                raise BundleError(
                    f"the manifest names a file outside the bundle: {visible(entry.path)}"
                ) from error
        return manifest


class BundleAtom(AtomAttributes):
    """An atom of a bundle: every attribute of `Atom`, its documents and its vector."""

    def __init__(self, bundle: Bundle, atom: Atom) -> None:
        super().__init__(atom)
        self._bundle = bundle

    def documents(self, sign: Sign = "positive", limit: int | None = None) -> list[DocumentMatch]:
        """Its active documents of one sign with their text, strongest first."""
        return self._bundle.matches(self.index, sign, limit)

    def vector(self) -> dict[str, NDArray[np.float32]]:
        """Its steering vector: float32, named and shaped as the LoRA parameters."""
        return self._bundle.vector(self.index)


def open_bundle(address: str | Path) -> Bundle:
    """Open a bundle at a folder, `file:///folder` or `s3://bucket/prefix`.

    Raises `BundleError` when there is no committed bundle there or it is of a newer format.
    """
    if isinstance(address, Path) or "://" not in address:
        folder = Path(address)
        if not folder.is_dir():
            raise BundleError(f"no such folder: {folder}")
        return Bundle(LocalStore(folder.resolve()))
    return Bundle(open_store(address))
