"""One query of a finished audit: its gradient, coded in the audit's dictionary, and the documents like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file

from atomscope.bundle import layout, read_coefficients, read_documents
from atomscope.errors import InvalidInput
from atomscope.types.atoms import Atom, AuditReport, Behaviour, DocumentRecord, DocumentRef
from atomscope.types.attribution import (
    AttributedAtom,
    AttributedBehaviour,
    AttributionQuery,
    AttributionResult,
)
from atomscope.types.bundle import Plan
from atomscope.types.spec import AuditSpec
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.datasets.preview import preview
from atomscope_workers.datasets.rows import BadRow, RowFault, bad_row, parse_row
from atomscope_workers.datasets.tokenize import RowTokenizer
from atomscope_workers.models.base import load_tokenizer
from atomscope_workers.models.device import choose_device
from atomscope_workers.models.load import adapter_disabled
from atomscope_workers.pipeline.attribution import (
    WhitenedQuery,
    code_cosines,
    code_query,
    explained,
    whiten_query,
)
from atomscope_workers.pipeline.batches import collate
from atomscope_workers.pipeline.fit import ACTIVE
from atomscope_workers.pipeline.gradients import document_losses, gradient_norms, gradient_pass
from atomscope_workers.pipeline.vectors import EXPONENTS
from atomscope_workers.stages.arrays import load_curvature
from atomscope_workers.stages.determinism import deterministic
from atomscope_workers.stages.gradient_file import GradientShards
from atomscope_workers.stages.inputs import kept_model

QUERY = "query"
"""What the query is called in messages, as a file of one line."""


class AuditFiles(Protocol):
    """A finished audit as a query sees it."""

    @property
    def spec(self) -> AuditSpec: ...

    def read(self, path: str) -> Path:
        """A local file with the content of the bundle's `path`; raises `AtomscopeError` without one."""
        ...

    def base(self) -> Path:
        """The base model's folder, its digest that of the spec; raises `InvalidInput` without it."""
        ...

    def progress(self, done: int, total: int, unit: str) -> None: ...

    def checkpoint(self) -> None:
        """Raise when the query should not go on."""
        ...


@dataclass(frozen=True)
class _Measured:
    """What one pass over the query gives."""

    gradients: dict[str, torch.Tensor]
    """Parameter -> float32 (d_out, d_in), on the CPU."""
    loss: float
    base_loss: float
    gradient_norm: float


@dataclass(frozen=True)
class _Dictionary:
    """The reported atoms of the audit."""

    atoms: list[Atom]
    inner: NDArray[np.float64]
    """(K, K): of every atom that was learned, reported or not."""

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

    Raises `InvalidInput`: `bad_row` where the query is no row that a data set could hold, `no_targets` where
    its completion has no token, `no_gradient` where it has no gradient, and what loading the model raises.
    """
    spec, plan = files.spec, _decode(files, layout.PLAN, Plan)
    total = len(plan.shards) + 2 if query.exact else 2
    files.progress(0, total, "steps")
    form, document, warnings = _tokenized(files, query)
    measured = _measured(files, plan, document)
    curvature = load_curvature(files.read(layout.CURVATURE))
    whitened = whiten_query(measured.gradients, curvature)
    if whitened.norm == 0:
        raise InvalidInput("no_gradient", "the adapter's parameters have no gradient on this completion")
    files.progress(1, total, "steps")
    dictionary = _dictionary(files)
    products = _atom_products(files, whitened, dictionary.atoms)
    report = _decode(files, layout.REPORT, AuditReport)
    alpha = float(report.details["dictionary"]["alpha"])
    code = code_query(products, dictionary.reported, alpha, spec.config.codes)
    files.progress(2, total, "steps")
    if query.exact:
        rows, cosines = _exact(files, plan, whitened, total)
    else:
        rows, cosines = _by_codes(files, plan, code, dictionary)
    return AttributionResult(
        form=form,
        n_tokens=len(document.input_ids),
        n_target_tokens=int(document.target_mask.sum()),
        loss=measured.loss,
        base_loss=measured.base_loss,
        gradient_norm=measured.gradient_norm,
        explained=explained(code, products, dictionary.reported),
        exact=query.exact,
        atoms=_atoms(dictionary.atoms, code, products),
        behaviours=_behaviours(_decode(files, layout.BEHAVIOURS, list[Behaviour]), dictionary.atoms, code),
        documents=_documents(files, rows, cosines, query.documents),
        warnings=warnings,
    )


def _decode(files: AuditFiles, path: str, kind: Any) -> Any:  # noqa: ANN401
    return msgspec.json.decode(files.read(path).read_bytes(), type=kind)


# ------------------------------------------------------------------ the query


def _tokenized(
    files: AuditFiles, query: AttributionQuery
) -> tuple[Literal["chat", "text"], TokenizedDocument, list[str]]:
    """The query as the audited data set's documents were tokenised."""
    tokenizer = RowTokenizer(load_tokenizer(files.base()), files.spec.config.max_length)
    row = parse_row(_row(files, query), document=0, line=1, file=QUERY)
    if isinstance(row, BadRow):
        raise _refused(row)
    try:
        document = tokenizer(row)
    except RowFault as fault:
        raise _refused(bad_row(fault, document=0, line=1, file=QUERY)) from fault
    if not document.target_mask.any():
        raise InvalidInput("no_targets", "the query has no target token left")
    limit = files.spec.config.max_length
    warnings = [f"the query was cut to {limit} tokens"] if tokenizer.truncated else []
    return row.form, document, warnings


def _refused(row: BadRow) -> InvalidInput:
    first = row.problems[0]
    where = f"`{first.field}`: " if first.field else ""
    return InvalidInput("bad_row", f"the query cannot be used: {where}{first.message}", list(row.problems))


def _row(files: AuditFiles, query: AttributionQuery) -> dict[str, Any]:
    """The row of a data set that the query is."""
    if query.messages is not None:
        return {"messages": query.messages}
    first = next(iter(read_documents(files.read(layout.DOCUMENTS), [_first_document(files)])))
    if first.messages[0]["role"] == "prompt":
        return {"prompt": query.prompt, "completion": query.completion}
    return {
        "messages": [
            {"role": "user", "content": query.prompt},
            {"role": "assistant", "content": query.completion},
        ]
    }


def _first_document(files: AuditFiles) -> int:
    plan: Plan = _decode(files, layout.PLAN, Plan)
    return plan.shards[0].documents[0]


def _measured(files: AuditFiles, plan: Plan, document: TokenizedDocument) -> _Measured:
    """Gradient and losses of the query, by the pass that the audit's documents had."""

    def adapter() -> Path:
        files.read(layout.ADAPTER_CONFIG)
        return files.read(layout.ADAPTER_WEIGHTS).parent

    lora = kept_model(files.spec, plan, choose_device(), files.base, adapter)
    files.checkpoint()
    batch = collate([document], lora.device)
    with deterministic(lora.device):
        with gradient_pass(lora) as run:
            found = run(batch)
        with adapter_disabled(lora):
            base = document_losses(lora, batch)
    return _Measured(
        gradients={name: part[0].cpu() for name, part in found.gradients.items()},
        loss=float(found.losses[0]),
        base_loss=float(base[0]),
        gradient_norm=float(gradient_norms(found.gradients)[0]),
    )


# ---------------------------------------------------------------------- atoms


def _dictionary(files: AuditFiles) -> _Dictionary:
    atoms: list[Atom] = _decode(files, layout.ATOMS, list[Atom])
    atoms.sort(key=lambda atom: atom.index)
    arrays = load_file(files.read(layout.DICTIONARY))
    if "inner" not in arrays:
        raise InvalidInput("old_bundle", "this bundle was made before queries were answered: audit again")
    return _Dictionary(atoms, arrays["inner"].astype(np.float64))


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


def _exact(
    files: AuditFiles, plan: Plan, query: WhitenedQuery, total: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Physical rows and the cosines of their whitened gradients with the query's, by one pass over them."""
    arrays = load_file(files.read(layout.DICTIONARY))
    norms = dict(zip(arrays["document"].tolist(), arrays["norm"].tolist(), strict=True))
    probe = query.probe(-0.5)
    cosines: list[float] = []
    rows = [row for shard in plan.shards for row in shard.documents]
    for shard in plan.shards:
        gradients = GradientShards([files.read(layout.gradient_shard(shard.index))], torch.device("cpu"))
        products = torch.zeros(len(shard.documents), dtype=torch.float64)
        for name, part in probe.items():
            files.checkpoint()
            products += (gradients.shard(0, name).flatten(1) @ part.flatten()).double()
        cosines += [
            float(product) / norms[row] if norms[row] > 0 else 0.0
            for row, product in zip(shard.documents, products, strict=True)
        ]
        files.progress(3 + shard.index, total, "steps")
    return np.array(rows, dtype=np.int64), np.array(cosines)


def _documents(
    files: AuditFiles, rows: NDArray[np.int64], cosines: NDArray[np.float64], limit: int
) -> list[DocumentRef]:
    order = np.lexsort((rows, -cosines))[:limit]
    chosen = rows[order].tolist()
    records: dict[int, DocumentRecord] = {
        record.document: record for record in read_documents(files.read(layout.DOCUMENTS), chosen)
    }
    return [
        DocumentRef(document=row, value=float(cosine), preview=preview(records[row].messages))
        for row, cosine in zip(chosen, cosines[order], strict=True)
    ]
