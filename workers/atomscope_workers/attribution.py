"""One query of a finished audit: its gradient, coded in the audit's dictionary, and the documents like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file

from atomscope.bundle import layout, read_coefficients, read_documents
from atomscope.errors import BundleError, InvalidInput
from atomscope.types.atoms import Atom, AuditReport, Behaviour, DocumentRef
from atomscope.types.attribution import (
    AttributedAtom,
    AttributedBehaviour,
    AttributionQuery,
    AttributionResult,
)
from atomscope.types.bundle import Plan
from atomscope_workers.datasets.preview import preview
from atomscope_workers.pipeline.attribution import (
    WhitenedQuery,
    code_cosines,
    code_query,
    explained,
    whiten_query,
)
from atomscope_workers.pipeline.fit import ACTIVE
from atomscope_workers.pipeline.vectors import EXPONENTS
from atomscope_workers.query import AuditFiles, measure_query, tokenize_query
from atomscope_workers.stages.arrays import load_curvature
from atomscope_workers.stages.gradient_file import GradientShards
from atomscope_workers.stages.retention import require_kept


@dataclass(frozen=True)
class _Dictionary:
    """The audit's atoms: those reported, and what is stored of all K that were learned."""

    atoms: list[Atom]
    """A of them, by index."""
    inner: NDArray[np.float64]
    """(K, K): inner products of every atom that was learned, reported or not."""
    norms: dict[int, float]
    """Physical row -> length of the document's whitened gradient."""

    @property
    def places(self) -> list[int]:
        """(A,): places of the reported atoms among the K."""
        return [atom.index for atom in self.atoms]

    @property
    def reported(self) -> NDArray[np.float64]:
        """(A, A): `inner` of the reported atoms."""
        return self.inner[np.ix_(self.places, self.places)]


def attribute(files: AuditFiles, query: AttributionQuery) -> AttributionResult:
    """Trace a query to atoms, behaviours and documents.

    Raises `InvalidInput`: `old_bundle`, `gradients_not_kept` and `gradients_missing` where the bundle lacks
    what is needed, and what `tokenize_query` and `measure_query` raise. The model is loaded after everything
    that is cheap.
    """
    plan: Plan = _decode(files, layout.PLAN, Plan)
    total = len(plan.shards) + 2 if query.exact else 2
    files.progress(0, total, "steps")
    dictionary = _dictionary(files)
    if query.exact:
        require_kept(files.spec.config, "`exact`")
        _check_gradients(files, plan)
    tokens = tokenize_query(files, plan, query)
    measured = measure_query(files, plan, tokens.document)
    whitened = whiten_query(measured.gradients, load_curvature(files.read(layout.CURVATURE)))
    if whitened.norm == 0:
        raise InvalidInput("no_gradient", "the completion moves nothing that the audit's documents move")
    files.progress(1, total, "steps")
    products = _atom_products(files, whitened, dictionary.atoms)
    code = _code(files, products, dictionary)
    files.progress(2, total, "steps")
    if query.exact:
        rows, cosines = _exact(files, plan, whitened, dictionary.norms, total)
    else:
        rows, cosines = _by_codes(files, plan, code, dictionary)
    return AttributionResult(
        form=tokens.form,
        n_tokens=len(tokens.document.input_ids),
        n_target_tokens=int(tokens.document.target_mask.sum()),
        loss=measured.loss,
        base_loss=measured.base_loss,
        gradient_norm=measured.gradient_norm,
        explained=explained(code, products, dictionary.reported),
        exact=query.exact,
        atoms=_atoms(dictionary.atoms, code, products),
        behaviours=_behaviours(_decode(files, layout.BEHAVIOURS, list[Behaviour]), dictionary.atoms, code),
        documents=_documents(files, rows, cosines, query.documents),
        warnings=tokens.warnings,
    )


def _decode(files: AuditFiles, path: str, kind: Any) -> Any:  # noqa: ANN401
    try:
        return msgspec.json.decode(files.read(path).read_bytes(), type=kind)
    except msgspec.MsgspecError as error:
        raise BundleError(f"{path} is damaged: {error}") from error


# ---------------------------------------------------------------------- atoms


def _dictionary(files: AuditFiles) -> _Dictionary:
    arrays = load_file(files.read(layout.DICTIONARY))
    if not arrays.keys() >= {"inner", "document", "norm"}:
        raise InvalidInput("old_bundle", "this bundle was made before queries were answered: audit again")
    atoms: list[Atom] = _decode(files, layout.ATOMS, list[Atom])
    return _Dictionary(
        atoms=sorted(atoms, key=lambda atom: atom.index),
        inner=arrays["inner"].astype(np.float64),
        norms=dict(zip(arrays["document"].tolist(), arrays["norm"].tolist(), strict=True)),
    )


def _atom_products(files: AuditFiles, query: WhitenedQuery, atoms: Sequence[Atom]) -> NDArray[np.float64]:
    """Inner products (A,) of the query with the atoms, one stored vector after the other."""
    probe = query.probe(-EXPONENTS[files.spec.config.vector_power])
    products = np.zeros(len(atoms))
    for place, atom in enumerate(atoms):
        files.checkpoint()
        with safe_open(files.read(layout.vector(atom.index)), "pt") as vector:
            # Minus: a steering vector points down the loss.
            products[place] = -sum(
                float((vector.get_tensor(name).double() * part).sum()) for name, part in probe.items()
            )
    return products


def _code(files: AuditFiles, products: NDArray[np.float64], dictionary: _Dictionary) -> NDArray[np.float64]:
    """The query's code (A,), under the penalty that the audit's fit used in the end."""
    if not dictionary.atoms:  # the audit found none, and may have fitted none
        return np.zeros(0)
    report: AuditReport = _decode(files, layout.REPORT, AuditReport)
    alpha = float(report.details["dictionary"]["alpha"])
    return code_query(products, dictionary.reported, alpha, files.spec.config.codes)


def _atoms(
    atoms: Sequence[Atom], code: NDArray[np.float64], products: NDArray[np.float64]
) -> list[AttributedAtom]:
    active: list[int] = np.flatnonzero(np.abs(code) > ACTIVE).tolist()
    order = sorted(active, key=lambda place: -abs(code[place]))
    return [
        AttributedAtom(
            atom=atoms[place].index,
            rank=atoms[place].rank,
            value=float(code[place]),
            cosine=float(products[place]),
            behaviour=atoms[place].behaviour,
            keywords=atoms[place].keywords,
            label=atoms[place].label,
        )
        for place in order
    ]


def _behaviours(
    behaviours: Sequence[Behaviour], atoms: Sequence[Atom], code: NDArray[np.float64]
) -> list[AttributedBehaviour]:
    by_index = {atom.index: max(0.0, float(value)) for atom, value in zip(atoms, code, strict=True)}
    found = [
        AttributedBehaviour(
            behaviour=item.index,
            rank=item.rank,
            strength=sum(by_index[atom] for atom in item.atoms),
            keywords=item.keywords,
            label=item.label,
        )
        for item in behaviours
    ]
    active = [item for item in found if item.strength > ACTIVE]
    return sorted(active, key=lambda item: (-item.strength, item.rank))


# ------------------------------------------------------------------ documents


def _by_codes(
    files: AuditFiles, plan: Plan, code: NDArray[np.float64], dictionary: _Dictionary
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Physical rows and the cosines of their codes with the query's; rows without any left out."""
    stored = read_coefficients(files.read(layout.COEFFICIENTS))
    whole = np.zeros(len(dictionary.inner))
    whole[dictionary.places] = code
    cosines = code_cosines(whole, stored, dictionary.inner, plan.n_rows)
    rows = np.flatnonzero(cosines > 0)
    return rows, cosines[rows]


def _check_gradients(files: AuditFiles, plan: Plan) -> None:
    paths = [layout.gradient_shard(shard.index) for shard in plan.shards]
    missing = [path for path in paths if not files.holds(path)]
    if missing:
        raise InvalidInput(
            "gradients_missing",
            f"{missing[0]} is not there: it has expired, or was left out of a copy. Without gradients, "
            "documents are ranked by codes alone",
        )


def _exact(
    files: AuditFiles, plan: Plan, query: WhitenedQuery, norms: dict[int, float], total: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Physical rows and the cosines of their whitened gradients with the query's, by one pass over them."""
    probe = query.probe(-0.5)
    cosines: list[float] = []
    rows = [row for shard in plan.shards for row in shard.documents]
    for done, shard in enumerate(plan.shards, start=1):
        path = layout.gradient_shard(shard.index)
        gradients = GradientShards([files.read(path)], torch.device("cpu"))
        products = torch.zeros(len(shard.documents), dtype=torch.float64)
        for name, part in probe.items():
            files.checkpoint()
            products += (gradients.shard(0, name).flatten(1) @ part.flatten()).double()
        files.forget(path)
        cosines += [
            float(product) / norms[row] if norms[row] > 0 else 0.0
            for row, product in zip(shard.documents, products, strict=True)
        ]
        files.progress(2 + done, total, "steps")
    return np.array(rows, dtype=np.int64), np.clip(cosines, -1.0, 1.0)


def _documents(
    files: AuditFiles, rows: NDArray[np.int64], cosines: NDArray[np.float64], limit: int
) -> list[DocumentRef]:
    order = np.lexsort((rows, -cosines))[:limit]
    chosen: list[int] = rows[order].tolist()
    found = read_documents(files.read(layout.DOCUMENTS), chosen)
    records = {record.document: record for record in found}
    absent = [row for row in chosen if row not in records]
    if absent:
        raise BundleError(f"{layout.DOCUMENTS} does not list document {absent[0]}")
    return [
        DocumentRef(document=row, value=float(cosine), preview=preview(records[row].messages))
        for row, cosine in zip(chosen, cosines[order], strict=True)
    ]
