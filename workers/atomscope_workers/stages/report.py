"""The report: every document's record, and the audit on one page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from atomscope.bundle import layout, write_documents
from atomscope.text import counted
from atomscope.types.atoms import Atom, AuditReport, Behaviour, DocumentRecord, DroppedDocument
from atomscope.types.bundle import Plan
from atomscope_workers.datasets.documents import TokenCounts, token_counts
from atomscope_workers.pipeline.evidence import DISCOVERY_RATE
from atomscope_workers.pipeline.plan import padding_facts
from atomscope_workers.stages.arrays import MORE_LOSSES, Losses, load_losses
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.stages.coordinates import DIRECTION_FACTS
from atomscope_workers.stages.dictionary import FACTS
from atomscope_workers.stages.inputs import read_plan, read_rows, read_shards
from atomscope_workers.stages.refit import DOCUMENT_WARNINGS
from atomscope_workers.stages.retention import gradient_facts
from atomscope_workers.stages.rows import StoredRow
from atomscope_workers.stages.shard_keys import to_extract
from atomscope_workers.stages.warned import earlier, kept

DROPPED_LISTED = 1000
FEW_DOCUMENTS = 100
"""Documents below which the report warns that its evidence is weak."""


def run(ctx: StageContext) -> UnitResult:
    """Write `documents/documents.parquet` and `report.json`."""
    ctx.progress(0, 1, "steps")
    plan = read_plan(ctx)
    losses = load_losses([ctx.read(layout.shard_losses(index)) for index in range(ctx.shards)])
    measured = ~np.isnan(losses.base_loss)
    base_losses = dict(zip(losses.document.tolist(), losses.base_loss.tolist(), strict=True))
    more = load_losses([ctx.read(MORE_LOSSES)])
    base_losses |= dict(zip(more.document.tolist(), more.base_loss.tolist(), strict=True))
    counts = token_counts(ctx.read(layout.TOKENS))
    documents: list[int] = losses.document.tolist()
    scratch = ctx.scratch / "documents.parquet"
    write_documents(_records(read_rows(ctx), counts, losses, base_losses), scratch)
    ctx.write(layout.DOCUMENTS, scratch)
    # Of the extraction's even sample alone: what was measured for the evidence are the documents of atoms.
    n_targets = sum(counts[row].targets for row, sampled in zip(documents, measured, strict=True) if sampled)
    loss_base = float(losses.base_loss[measured].sum()) / n_targets
    loss_adapter = float(losses.loss[measured].sum()) / n_targets
    warnings: list[str] = []
    if loss_adapter >= loss_base:
        warnings.append(
            f"the adapter does not lower the loss of this data ({loss_adapter:.3f} nats a target token with "
            f"it, {loss_base:.3f} without): it may not have been trained on it"
        )
    atoms = msgspec.json.decode(ctx.read(layout.ATOMS).read_bytes(), type=list[Atom])
    if atoms and plan.n_documents < FEW_DOCUMENTS:
        warnings.append(
            f"only {counted(plan.n_documents, 'document')}: whatever so few share, a system turn even, "
            "passes for a finding; false-discovery rates mean little here"
        )
    behaviours = msgspec.json.decode(ctx.read(layout.BEHAVIOURS).read_bytes(), type=list[Behaviour])
    dropped = msgspec.json.decode(ctx.read(layout.DROPPED).read_bytes(), type=list[DroppedDocument])
    report = AuditReport(
        audit_id=ctx.spec.audit_id,
        n_documents=plan.n_documents,
        n_dropped=len(dropped),
        dropped=dropped[:DROPPED_LISTED],
        n_atoms=len(atoms),
        n_coherent_05=sum(atom.coherence > 0.5 for atom in atoms),
        n_coherent_01=sum(atom.coherence > 0.1 for atom in atoms),
        n_behaviours=len(behaviours),
        n_significant=_passing(atoms),
        n_significant_behaviours=_passing(behaviours),
        loss_base=loss_base,
        loss_adapter=loss_adapter,
        n_loss_documents=int(measured.sum()),
        warnings=[*earlier(ctx), *warnings],
        atoms=atoms,
        behaviours=[msgspec.structs.replace(item, documents=[]) for item in behaviours],
        details=_details(ctx, plan, {row: counts[row].read for row in documents}),
    )
    ctx.write_bytes(layout.REPORT, msgspec.json.format(msgspec.json.encode(report), indent=1))
    ctx.progress(1, 1, "steps")
    return UnitResult(documents=plan.n_documents, summary={"warnings": warnings, "n_atoms": len(atoms)})


def _records(
    rows: Mapping[int, StoredRow],
    counts: Mapping[int, TokenCounts],
    losses: Losses,
    base_losses: Mapping[int, float],
) -> Iterator[DocumentRecord]:
    """The documents one by one: together their texts are as large as the data set."""
    documents: list[int] = losses.document.tolist()
    for position, document in enumerate(documents):
        row, count = rows[document], counts[document]
        yield DocumentRecord(
            document=document,
            id=row.id,
            messages=row.messages,
            n_tokens=count.tokens,
            n_target_tokens=count.targets,
            loss=float(losses.loss[position]),
            base_loss=None if math.isnan(base_losses[document]) else base_losses[document],
            gradient_norm=float(losses.gradient_norm[position]),
        )


def _passing(found: Sequence[Atom] | Sequence[Behaviour]) -> int | None:
    """How many pass at the rate; None where none was compared with chance."""
    tested = [item.evidence.q_value for item in found if item.evidence.q_value is not None]
    return sum(q <= DISCOVERY_RATE for q in tested) if tested else None


def _details(ctx: StageContext, plan: Plan, lengths: Mapping[int, int]) -> dict[str, Any]:
    """How the fit went, how much of the documents directions hold, what was kept, what padding cost."""
    found: dict[str, Any] = {"dictionary": msgspec.json.decode(ctx.read(FACTS).read_bytes())}
    if DIRECTION_FACTS in ctx.outputs():
        found["directions"] = msgspec.json.decode(ctx.read(DIRECTION_FACTS).read_bytes())
    told = kept("validate")
    if told in ctx.outputs():
        found[DOCUMENT_WARNINGS] = msgspec.json.decode(ctx.read(told).read_bytes())
    if layout.SHARDS in ctx.outputs():
        new = [] if ctx.parent is not None else to_extract(plan, read_shards(ctx))
        found["documents_extracted"] = sum(len(shard.documents) for shard in new)
    found["gradients"] = gradient_facts(ctx.spec.config, plan)
    found["padding"] = padding_facts(plan, lengths)
    return found
