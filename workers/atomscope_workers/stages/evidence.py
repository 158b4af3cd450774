"""How far to trust what was found: the fit under other seeds, on surrogates and on the text alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from atomscope.bundle import Coefficients, layout, read_coefficients
from atomscope.types.atoms import Evidence
from atomscope.types.spec import AuditConfig
from atomscope_workers.datasets.documents import TokenizedDocument, load_some, token_counts
from atomscope_workers.models.load import adapter_disabled
from atomscope_workers.pipeline.batches import collate
from atomscope_workers.pipeline.evidence import (
    benjamini_hochberg,
    column_cosines,
    enough_of_each,
    first_documents,
    p_values,
    prominence,
    stability,
    tightness,
)
from atomscope_workers.pipeline.findings import Findings, find, group
from atomscope_workers.pipeline.gradients import document_losses
from atomscope_workers.pipeline.hierarchy import hierarchy
from atomscope_workers.pipeline.plan import micro_batches
from atomscope_workers.pipeline.rotation import turned
from atomscope_workers.pipeline.separation import pulls, separation
from atomscope_workers.pipeline.span import Span
from atomscope_workers.pipeline.text import text_span
from atomscope_workers.stages.arrays import MORE_LOSSES, Losses, load_losses, save_losses
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.stages.determinism import deterministic
from atomscope_workers.stages.dictionary import read_dictionary
from atomscope_workers.stages.inputs import lora_model, plan_device, read_plan, read_rows
from atomscope_workers.stages.sketch_columns import whitened_columns
from atomscope_workers.stages.space import SpannedDocuments, spanned_documents

FOUND = "work/evidence.json"

LOSS_DOCUMENTS = 8
"""First documents of each atom and behaviour whose loss is compared."""
ENOUGH_MEASURED = 0.5
"""Share of these that tells the loss drop of an atom, and in a refit of a behaviour too."""


class GroupFound(msgspec.Struct, kw_only=True, frozen=True):
    """A behaviour: atom indices, strongest first, and its evidence."""

    atoms: list[int]
    evidence: Evidence


@dataclass(frozen=True)
class Chance:
    """What the columns of one surrogate reach, (K,) each."""

    tightness: NDArray[np.float64]
    separation: NDArray[np.float64]


T = TypeVar("T")
ByKind = tuple[T, T]
"""Of atoms, and of behaviours."""


class Found(msgspec.Struct, kw_only=True, frozen=True):
    """What `work/evidence.json` holds."""

    atoms: dict[int, Evidence]
    """By atom index; atoms that too few documents use are not in it."""
    behaviours: list[GroupFound]


def run(ctx: StageContext) -> UnitResult:
    """Write `atoms/hierarchy.json`, `work/evidence.json`, and `work/losses/more.safetensors`."""
    device = plan_device(read_plan(ctx))
    with deterministic(device):
        return _run(ctx, spanned_documents(ctx, device))


def _run(ctx: StageContext, spanned: SpannedDocuments) -> UnitResult:
    config, span = ctx.spec.config, spanned.span
    steps, done = config.fits + config.surrogates, 0

    def step() -> None:
        nonlocal done
        ctx.checkpoint()
        ctx.progress(done, steps, "fits")
        done += 1

    step()
    own = group(span, stored_codes(ctx, spanned), stored_strengths(ctx, spanned), config)
    tree = hierarchy(own.kept, own.grouping)
    ctx.write_bytes(layout.HIERARCHY, msgspec.json.format(msgspec.json.encode(tree), indent=1))
    # Of each fit no more is kept than what it tells: all of it is as large as the audit's own.
    others: list[ByKind[NDArray[np.float64]]] = []
    for number in range(1, config.fits):
        step()
        others.append(_matches(own, find(span, config, config.seed + number)))
    null: list[ByKind[Chance]] = []
    for number in range(config.surrogates):
        step()
        null.append(_surrogate(span, config, number))
    step()
    text = _text_fit(ctx, spanned, own)
    first = [first_documents(table, LOSS_DOCUMENTS) for table in (own.atoms, own.behaviours)]
    drops = _loss_drops(ctx, spanned, *first)
    told, matched, chance = text or (None, None), _each_kind(others), _each_kind(null)
    atoms = _evidence(span, own.atoms, matched[0], chance[0], told[0], drops[0])
    behaviours = _evidence(span, own.behaviours, matched[1], chance[1], told[1], drops[1])
    found = Found(
        atoms={int(index): item for index, item in zip(own.kept, atoms, strict=True)},
        behaviours=[
            GroupFound(atoms=_by_weight(own, members), evidence=item)
            for members, item in zip(own.grouping.groups, behaviours, strict=True)
        ],
    )
    ctx.write_bytes(FOUND, msgspec.json.encode(found))
    ctx.progress(steps, steps, "fits")
    return UnitResult()


def stored_codes(ctx: StageContext, spanned: SpannedDocuments) -> NDArray[np.float64]:
    """Sparse codes (n, K) of the span's documents."""
    stored = read_coefficients(ctx.read(layout.COEFFICIENTS))
    return _table(ctx, spanned, stored, stored.code)


def stored_strengths(ctx: StageContext, spanned: SpannedDocuments) -> NDArray[np.float64]:
    """Strengths (n, K) of the span's documents on the atoms."""
    stored = read_coefficients(ctx.read(layout.COEFFICIENTS))
    return _table(ctx, spanned, stored, stored.value)


def _table(
    ctx: StageContext, spanned: SpannedDocuments, stored: Coefficients, values: NDArray[np.float64]
) -> NDArray[np.float64]:
    found = np.zeros((len(spanned.documents), len(read_dictionary(ctx)["signs"])))
    found[np.searchsorted(spanned.documents, stored.document), stored.atom] = values
    return found[spanned.used]


def _matches(own: Findings, other: Findings) -> ByKind[NDArray[np.float64]]:
    """Cosines (K, L) of what was found with what another fit finds."""
    return (
        column_cosines(own.atoms.clip(min=0), other.atoms.clip(min=0)),
        column_cosines(own.behaviours.clip(min=0), other.behaviours.clip(min=0)),
    )


def _surrogate(span: Span, config: AuditConfig, number: int) -> ByKind[Chance]:
    """What the whole fit finds in documents that fall into no groups."""
    surrogate = turned(span, config.seed, f"surrogate/{number}")
    fitted = find(surrogate, config, config.seed)

    def chance(table: NDArray[np.float64]) -> Chance:
        pulled = pulls(surrogate, table)
        return Chance(tightness(pulled, table), separation(pulled))

    return chance(fitted.atoms), chance(fitted.behaviours)


def _each_kind(found: Sequence[ByKind[T]]) -> tuple[list[T], list[T]]:
    return [item[0] for item in found], [item[1] for item in found]


def _text_fit(
    ctx: StageContext, spanned: SpannedDocuments, own: Findings
) -> ByKind[NDArray[np.float64]] | None:
    """Agreement (K,) of what was found with the same learner on the documents' words; None without words."""
    config = ctx.spec.config
    rows = read_rows(ctx)
    physical = spanned.documents[spanned.used].tolist()
    texts = ("\n".join(turn["content"] for turn in rows[item].messages) for item in physical)
    columns = whitened_columns(config, len(spanned.documents))
    found = text_span(texts, exact_documents=config.exact_documents, columns=columns, seed=config.seed)
    if found is None:
        return None
    span, used = found
    fitted = find(span.to(spanned.span.device), config, config.seed)

    def agreement(table: NDArray[np.float64], of_words: NDArray[np.float64]) -> NDArray[np.float64]:
        whole = np.zeros((len(physical), of_words.shape[1]))
        whole[used] = of_words.clip(min=0)
        return column_cosines(table.clip(min=0), whole).max(1, initial=0.0)

    return agreement(own.atoms, fitted.atoms), agreement(own.behaviours, fitted.behaviours)


def _evidence(
    span: Span,
    table: NDArray[np.float64],
    matches: Sequence[NDArray[np.float64]],
    null: Sequence[Chance],
    text: NDArray[np.float64] | None,
    drops: Sequence[tuple[float | None, int]],
) -> list[Evidence]:
    """Evidence of every column of a table (n, K) of strengths."""
    pulled = pulls(span, table)
    tight, stands_out, parted = tightness(pulled, table), prominence(pulled, table), separation(pulled)
    null_tight = [item.tightness for item in null]
    centre = float(np.median(np.concatenate(null_tight))) if sum(map(len, null_tight)) else None
    p = p_values(parted, np.concatenate([*(item.separation for item in null), np.zeros(0)]))
    q = benjamini_hochberg(p)
    stable = stability(matches) if matches else None
    return [
        Evidence(
            tightness=float(tight[item]),
            null_tightness=centre,
            prominence=float(stands_out[item]),
            separation=float(parted[item]),
            p_value=p[item],
            q_value=q[item],
            stability=float(stable[item]) if stable is not None else None,
            text_agreement=float(text[item]) if text is not None else None,
            loss_drop=drops[item][0],
            n_loss_documents=drops[item][1],
        )
        for item in range(table.shape[1])
    ]


def _by_weight(own: Findings, members: NDArray[np.int64]) -> list[int]:
    """Dictionary indices of some kept atoms, by falling total code."""
    totals = own.atoms[:, members].clip(min=0).sum(0)
    return [int(own.kept[members[place]]) for place in np.argsort(-totals, kind="stable")]


def _loss_drops(
    ctx: StageContext,
    spanned: SpannedDocuments,
    atoms: Sequence[NDArray[np.int64]],
    behaviours: Sequence[NDArray[np.int64]],
) -> tuple[list[tuple[float | None, int]], list[tuple[float | None, int]]]:
    """Nats a target token that the adapter takes off the loss of each set, and over how many documents.

    What the extraction's sample did not measure under the base is measured now, by a forward pass: a
    behaviour's set whole, and half of an atom's. In a refit half of either is enough: only what its parent
    left to be measured of it is.
    """
    sets = [spanned.used[members] for members in (*behaviours, *atoms)]
    losses = load_losses([ctx.read(layout.shard_losses(index)) for index in range(ctx.shards)])
    base = losses.base_loss.copy()
    wanted = np.unique(np.concatenate([*sets, np.zeros(0, np.int64)]))
    more = wanted[np.isnan(base[wanted])]
    whole = len(behaviours)
    if losses.parent_base_loss is not None:
        base[more] = losses.parent_base_loss[more]
        whole = 0
    missing = _missing(base, sets[:whole], sets[whole:])
    tokens = ctx.read(layout.TOKENS)
    documents = spanned.documents
    if len(missing):
        base[missing] = _base_losses(ctx, load_some(tokens, documents[missing].tolist()))
    more = more[~np.isnan(base[more])]
    scratch = ctx.scratch / "more.safetensors"
    save_losses(Losses(documents[more], losses.loss[more], base[more], losses.gradient_norm[more]), scratch)
    ctx.write(MORE_LOSSES, scratch)
    counts = token_counts(tokens)
    targets = np.array([counts[row].targets for row in documents.tolist()])
    found: list[tuple[float | None, int]] = []
    for places in sets:
        measured = places[~np.isnan(base[places])]
        count = int(targets[measured].sum())
        drop = float((base[measured] - losses.loss[measured]).sum()) / count if count else None
        found.append((drop, len(measured)))
    return found[len(behaviours) :], found[: len(behaviours)]


def _missing(
    base: NDArray[np.float64], whole: Sequence[NDArray[np.int64]], half: Sequence[NDArray[np.int64]]
) -> NDArray[np.int64]:
    """What is yet to be measured: all of `whole`, and of `half` so that half of each is known."""
    before = ~np.isnan(base)
    known = before.copy()
    for places in whole:
        known[places] = True
    known[enough_of_each(known, half, ENOUGH_MEASURED)] = True
    return np.flatnonzero(known & ~before)


def _base_losses(ctx: StageContext, documents: Sequence[TokenizedDocument]) -> list[float]:
    """Summed cross-entropy of each document's targets with the adapter off, in the order given."""
    plan = read_plan(ctx)
    lora = lora_model(ctx, plan)
    lengths = {place: item.read for place, item in enumerate(documents)}
    found = [0.0] * len(documents)
    with deterministic(lora.device), adapter_disabled(lora):
        for batch in micro_batches(list(lengths), lengths, plan.token_budget, plan.device_kind):
            ctx.checkpoint()
            losses = document_losses(lora, collate([documents[place] for place in batch], lora.device))
            for place, loss in zip(batch, losses.tolist(), strict=True):
                found[place] = loss
    return found
