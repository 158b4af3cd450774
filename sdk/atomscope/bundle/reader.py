"""Reading a bundle: from a folder or an S3 prefix, with no server and no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from atomscope.bundle import layout
from atomscope.bundle._json import decode
from atomscope.bundle.atom_list import AtomAttributes, AtomList, Sign, check_sign
from atomscope.bundle.behaviour_list import BehaviourAttributes, BehaviourList
from atomscope.bundle.directions import directions
from atomscope.bundle.documents import read_documents
from atomscope.bundle.files import BundleFiles
from atomscope.bundle.strengths import Strengths, strengths_by_target
from atomscope.bundle.tables import Coefficients, read_coefficients
from atomscope.errors import BundleError, SteeringError
from atomscope.steering import (
    BaseModel,
    Source,
    SteeredAdapter,
    Target,
    Vector,
    read_tensors,
    steer_folder,
)
from atomscope.store import LocalStore, ObjectNotFound, ObjectStore, open_store
from atomscope.text import counted, visible
from atomscope.types.atoms import Atom, AuditReport, Behaviour, DocumentRecord
from atomscope.types.bundle import Manifest, Plan
from atomscope.types.hierarchy import Hierarchy
from atomscope.types.resources import DocumentMatch, GradientsKept
from atomscope.types.spec import AuditConfig, AuditSpec, VectorPower
from atomscope.types.steering import Format, Unit

_STORED = re.compile(r"(.*[^/])/(projects/[^/]+/audits/[^/]+/bundle-a\d+-f\d+)/?")

ACTIVE = 1e-6
"""A code is active above this magnitude (section 3.4)."""


class Bundle:
    """A committed audit bundle. Files are read when they are asked for, then kept.

    Every access raises `BundleError` when a file is missing or damaged, `StoreError` when the store fails.
    """

    def __init__(self, store: ObjectStore, prefix: str = "", fetch_under: Path | None = None) -> None:
        """Open the bundle under `prefix` (which ends in `/`, or is empty).

        Where the store is not a folder, its files are fetched into one of their own in `fetch_under`, by
        default that of the machine's temporary files.
        """
        self._files = BundleFiles(store, prefix, fetch_under)

    def __repr__(self) -> str:
        manifest = self.manifest
        return f"<Bundle of {visible(manifest.audit_id)}: {counted(len(manifest.files), 'file')}>"

    @property
    def manifest(self) -> Manifest:
        return self._files.manifest

    @cached_property
    def spec(self) -> AuditSpec:
        """The audit's settings; those that this version does not know are left out."""
        raw = decode(self._files.read(layout.SPEC), dict[str, Any], layout.SPEC)
        config = raw.get("config")
        if isinstance(config, dict):
            # A request with an unknown setting is refused; in a record of the past it does no harm.
            raw["config"] = {name: config[name] for name in AuditConfig.__struct_fields__ if name in config}
        return decode(msgspec.json.encode(raw), AuditSpec, layout.SPEC)

    @cached_property
    def plan(self) -> Plan:
        return decode(self._files.read(layout.PLAN), Plan, layout.PLAN)

    @cached_property
    def report(self) -> AuditReport:
        return decode(self._files.read(layout.REPORT), AuditReport, layout.REPORT)

    @cached_property
    def atoms(self) -> AtomList[BundleAtom]:
        """The atoms, by rank."""
        found = decode(self._files.read(layout.ATOMS), list[Atom], layout.ATOMS)
        return AtomList([BundleAtom(self, atom) for atom in found])

    @cached_property
    def behaviours(self) -> BehaviourList[BundleBehaviour]:
        """The behaviours, by rank; none in a bundle of before there were any."""
        if layout.BEHAVIOURS not in self._files:
            return BehaviourList([])
        found = decode(self._files.read(layout.BEHAVIOURS), list[Behaviour], layout.BEHAVIOURS)
        return BehaviourList([BundleBehaviour(self, behaviour) for behaviour in found])

    @cached_property
    def hierarchy(self) -> Hierarchy:
        """The tree over the atoms whose cut is the behaviours.

        Raises `BundleError` for a bundle of before it was kept.
        """
        if layout.HIERARCHY not in self._files:
            raise BundleError(
                f"the bundle holds no {layout.HIERARCHY}: it was made before the tree over the atoms was "
                "kept; audit again"
            )
        return decode(self._files.read(layout.HIERARCHY), Hierarchy, layout.HIERARCHY)

    @cached_property
    def coefficients(self) -> Coefficients:
        """The sparse codes, signs resolved."""
        return read_coefficients(self._files.path(layout.COEFFICIENTS))

    @cached_property
    def documents(self) -> Mapping[int, DocumentRecord]:
        """The audited documents by physical row, rising; all of them, in memory."""
        return {record.document: record for record in read_documents(self._files.path(layout.DOCUMENTS))}

    @cached_property
    def _keeps_gradients(self) -> bool:
        return layout.SPEC not in self._files or self.spec.config.gradients not in ("sketch", "none")

    @property
    def gradients_kept(self) -> GradientsKept:
        """`kept`; `expired` where they are gone, as they may be; `sketch` or `none` by the setting."""
        if not self._keeps_gradients:
            return "sketch" if self.spec.config.gradients == "sketch" else "none"
        # One of each extraction: these go as a whole.
        one = {key.split("/")[3]: path for path, key in (self.manifest.shared or {}).items()}
        return "expired" if any(self._files.expired(path) for path in one.values()) else "kept"

    def gradients(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Gradient shards in order: `document` int64 (rows,) and one tensor a parameter, (rows, *shape).

        Of float32, the arrays are read-only views of one shard's file, which is not kept when it had to be
        fetched; what is stored in 16 bits is widened to float32. Raises `BundleError` where the audit kept no
        gradients, or they have expired.
        """
        if not self._keeps_gradients:
            setting = self.spec.config.gradients
            raise BundleError(
                f"the bundle holds no gradients: the audit was made with `gradients: {setting}`"
            )
        for shard in self.plan.shards:
            path = layout.gradient_shard(shard.index)
            tensors = self._tensors(path, integers=True)
            rows = tensors.get("document")
            if rows is None or rows.tolist() != shard.documents:
                raise BundleError(f"{path} does not hold the documents of the plan")
            if any(tensor.shape[:1] != rows.shape for tensor in tensors.values()):
                raise BundleError(f"{path} does not hold one row a document")
            self._files.forget(path)
            yield _widened(tensors, path)

    def vector(self, atom: int) -> dict[str, NDArray[np.float32]]:
        """Steering vector of the atom of that index: float32, named and shaped as the LoRA parameters.

        Adding it raises the behaviour: it is minus the unprojected gradient direction of its documents.
        """
        path = layout.vector(atom)
        if path not in self._files:
            raise BundleError(f"the bundle holds no vector of atom {atom}")
        tensors = self._tensors(path)
        if any(tensor.dtype != np.float32 for tensor in tensors.values()):
            raise BundleError(f"{path} does not hold float32")
        return tensors

    def matches(self, atom: int, sign: Sign = "positive", limit: int | None = None) -> list[DocumentMatch]:
        """Active documents of one sign of an atom with their text, strongest first.

        Raises `UsageError` for a sign that there is not.
        """
        check_sign(sign)
        rows, values = self.coefficients.of_atom(atom)
        signed = values if sign == "positive" else -values
        active = np.flatnonzero(signed > ACTIVE)
        order = active[np.lexsort((rows[active], -signed[active]))][:limit]
        return self._matches(rows[order].tolist(), values[order].tolist(), layout.COEFFICIENTS)

    def behaviour_matches(self, behaviour: int, limit: int | None = None) -> list[DocumentMatch]:
        """Documents of a behaviour, by index, with their text, strongest first; `value` is the strength."""
        members = self.behaviours.get(behaviour).behaviour.documents[:limit]
        rows = [member.document for member in members]
        return self._matches(rows, [member.strength for member in members], layout.BEHAVIOURS)

    def _matches(self, rows: list[int], values: list[float], path: str) -> list[DocumentMatch]:
        """Documents in the order given, with a value each; `path` is the file that names them."""
        records = self._records(rows)
        found: list[DocumentMatch] = []
        for row, value in zip(rows, values, strict=True):
            if row not in records:
                raise BundleError(f"{path} names document {row}, which is not listed")
            record = records[row]
            found.append(
                DocumentMatch(
                    document=row,
                    value=value,
                    id=record.id,
                    messages=record.messages,
                    n_tokens=record.n_tokens,
                    n_target_tokens=record.n_target_tokens,
                    loss=record.loss,
                )
            )
        return found

    def direction(self, target: Target, power: VectorPower | None = None) -> Vector:
        """The steering vector of an atom or a behaviour, in the audit's power or another one.

        A behaviour's is the mean of what its atoms explain of its documents' whitened gradients, unprojected.
        Raises `SteeringError` for a target that the audit does not have.
        """
        return directions(self, [target], power)[target]

    def steer(
        self,
        strengths: Strengths,
        *,
        format: Format = "adapter",
        unit: Unit = "norm",
        power: VectorPower | None = None,
    ) -> SteeredAdapter:
        """The audited adapter, moved along the vectors of atoms and behaviours, in one of the formats.

        Strengths are in units of the adapter's norm, or under `unit="alpha"` of the vectors as they are;
        positive means more of the behaviour. `power` is that of (lambda + damping) in the unprojection, by
        default the audit's; another one reads the curvature. Raises `SteeringError`.
        """
        wanted = strengths_by_target(strengths, self.manifest.audit_id)
        vectors = directions(self, wanted, power)
        adapter = self._files.path(layout.ADAPTER_CONFIG).parent
        self._files.path(layout.ADAPTER_WEIGHTS)
        return steer_folder(adapter, vectors, wanted, self._source(power), format=format, unit=unit)

    def _source(self, power: VectorPower | None) -> Source:
        """Where the vectors come from, as far as the bundle says."""
        spec = self.spec if layout.SPEC in self._files else None
        config = None
        if layout.BASE_CONFIG in self._files:
            config = decode(self._files.read(layout.BASE_CONFIG), dict[str, Any], layout.BASE_CONFIG)
        if spec is None:
            return Source(self.manifest.audit_id, power, None, config)
        base = spec.base_model
        model = BaseModel(id=base.id, name=base.name, sha256=base.sha256)
        return Source(self.manifest.audit_id, power or spec.config.vector_power, model, config)

    def file(self, path: str) -> Path:
        """A local file with the content of `path` (fetched and kept when the store is not a folder)."""
        return self._files.path(path)

    def checked(self, path: str) -> Path:
        """As `file`, after comparing the file's SHA-256 with the manifest; raises `BundleError`."""
        return self._files.checked(path)

    def holds(self, path: str) -> bool:
        """Whether `file(path)` is there: what is large may have been left out of a copy."""
        return self._files.holds(path)

    def key(self, path: str) -> str:
        """The key of `path` in the store that the bundle was opened in."""
        return self._files.key(path)

    def forget(self, path: str) -> None:
        """Remove the copy that `file(path)` fetched; a folder's own file is left alone."""
        self._files.forget(path)

    def verify(self) -> list[str]:
        """Read every file and compare its SHA-256; raises `BundleError` naming those that differ.

        A file beside them that the manifest does not list is named too. Gives the paths of the gradients that
        have expired, or were left out of a copy of a service's bundle.
        """
        return self._files.verify()

    def _records(self, rows: list[int]) -> Mapping[int, DocumentRecord]:
        """The records of some documents, from memory when all are there already."""
        if "documents" in self.__dict__:
            return self.documents
        found = read_documents(self._files.path(layout.DOCUMENTS), rows)
        return {record.document: record for record in found}

    def _tensors(self, path: str, *, integers: bool = False) -> dict[str, NDArray[Any]]:
        try:
            return read_tensors(self._files.path(path), integers=integers)
        except SteeringError as error:
            raise BundleError(f"{path} is damaged: {error}") from error


def _widened(tensors: dict[str, NDArray[Any]], path: str) -> dict[str, NDArray[Any]]:
    """The gradients of a shard as they are, those of 16 bits as float32, by their scales if they have any."""
    found: dict[str, NDArray[Any]] = {}
    for name, tensor in tensors.items():
        if name.startswith(layout.SCALE):
            continue
        if tensor.dtype.itemsize != 2:
            found[name] = tensor
            continue
        found[name] = tensor.astype(np.float32)
        if tensor.dtype == np.float16:
            scale = tensors.get(layout.SCALE + name)
            if scale is None or scale.shape != tensor.shape[:1]:
                raise BundleError(f"{path} does not hold a scale for each row of {visible(name)}")
            found[name] *= scale.reshape(-1, *[1] * (tensor.ndim - 1))
    return found


class BundleAtom(AtomAttributes):
    """An atom of a bundle: every attribute of `Atom`, its documents and its vector."""

    def __init__(self, bundle: Bundle, atom: Atom) -> None:
        super().__init__(atom, bundle.manifest.audit_id)
        self._bundle = bundle

    def documents(self, sign: Sign = "positive", limit: int | None = None) -> list[DocumentMatch]:
        """Its active documents of one sign with their text, strongest first."""
        return self._bundle.matches(self.index, sign, limit)

    def vector(self) -> dict[str, NDArray[np.float32]]:
        """Its steering vector: float32, named and shaped as the LoRA parameters."""
        return self._bundle.vector(self.index)


class BundleBehaviour(BehaviourAttributes):
    """A behaviour of a bundle: every attribute of `Behaviour`, and its documents."""

    def __init__(self, bundle: Bundle, behaviour: Behaviour) -> None:
        super().__init__(behaviour, bundle.manifest.audit_id)
        self._bundle = bundle

    def documents(self, limit: int | None = None) -> list[DocumentMatch]:
        """Its documents with their text, strongest first; `value` is the strength."""
        return self._bundle.behaviour_matches(self.index, limit)


def open_bundle(address: str | Path) -> Bundle:
    """Open a bundle at a folder, `file:///folder` or `s3://bucket/prefix`.

    Raises `BundleError` when there is no committed bundle there, or it is of a newer format; `StoreError`
    when the address is no store's or the store cannot be reached.
    """
    is_uri = isinstance(address, str) and "://" in address
    text = address if is_uri else Path(address).absolute().as_posix()
    # In the store of a service, what bundles share is found from its root.
    stored = _STORED.fullmatch(str(text))
    root, prefix = (stored[1], f"{stored[2]}/") if stored is not None else (str(text), "")
    try:
        return Bundle(
            open_store(root, create=False) if is_uri else LocalStore(Path(root), create=False), prefix
        )
    except ObjectNotFound as error:
        raise BundleError(str(error)) from error
