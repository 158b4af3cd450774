"""What each atom and behaviour is: documents, coherence beside a random null, keywords, evidence, rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from atomscope.bundle import layout
from atomscope.text import counted
from atomscope.types.atoms import Atom, Behaviour, DocumentRef, DocumentStrength, Exemplars
from atomscope.types.hierarchy import Hierarchy
from atomscope_workers.datasets.preview import preview
from atomscope_workers.pipeline.atoms import Membership, energy_retained, memberships
from atomscope_workers.pipeline.behaviours import strengths
from atomscope_workers.pipeline.evidence import DISCOVERY_RATE, FEWEST_NULL, first_documents
from atomscope_workers.pipeline.exemplars import quantile_places
from atomscope_workers.pipeline.keywords import Keywords, distinctive_keywords
from atomscope_workers.pipeline.ranking import ranks, scores
from atomscope_workers.pipeline.sides import sides
from atomscope_workers.stages.coherence import Coherence, coherence_of
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.stages.dictionary import read_dictionary
from atomscope_workers.stages.evidence import FOUND, Found, stored_strengths
from atomscope_workers.stages.inputs import read_rows
from atomscope_workers.stages.labels import Subject, label
from atomscope_workers.stages.rows import StoredRow
from atomscope_workers.stages.space import SpannedDocuments, spanned_documents
from atomscope_workers.stages.vectors import read_made
from atomscope_workers.stages.warned import keep

FEW = 0.1
"""Share of the atoms learned below which the kept ones are called few."""


@dataclass(frozen=True)
class _View:
    """What the records are made from."""

    spanned: SpannedDocuments
    rows: Mapping[int, StoredRow]
    tree: Hierarchy
    limit: int

    def listed(self, positions: NDArray[np.int64], values: NDArray[np.float64]) -> list[DocumentRef]:
        """The first documents of `positions` in the span, with their entries of `values` (n,)."""
        return [self._ref(position, values) for position in positions[: self.limit]]

    def exemplars(self, positions: NDArray[np.int64], values: NDArray[np.float64]) -> list[Exemplars]:
        """Documents of every quantile of `positions`, which are strongest first."""
        return [
            Exemplars(quantile=quantile, documents=[self._ref(positions[place], values) for place in places])
            for quantile, places in quantile_places(len(positions))
        ]

    def _ref(self, position: np.int64, values: NDArray[np.float64]) -> DocumentRef:
        document = int(self.spanned.documents[self.spanned.used[position]])
        shown = preview(self.rows[document].messages)
        return DocumentRef(document=document, value=float(values[position]), preview=shown)


def run(ctx: StageContext) -> UnitResult:
    """Write `atoms/atoms.json` and `atoms/behaviours.json`, each ordered by rank."""
    config = ctx.spec.config
    ctx.progress(0, 2, "steps")
    spanned = spanned_documents(ctx)
    codes = stored_strengths(ctx, spanned)
    members = memberships(codes, config.min_active)
    found = msgspec.json.decode(ctx.read(FOUND).read_bytes(), type=Found)
    strength = strengths(codes, [group.atoms for group in found.behaviours])
    orders = first_documents(strength, len(codes))
    active = [member.positive for member in members] + orders
    top = [order[: config.top_documents] for order in active]
    coherence = coherence_of(ctx, [spanned.used[item] for item in top])
    ctx.progress(1, 2, "steps")
    ctx.checkpoint()
    rows = read_rows(ctx)
    tree = msgspec.json.decode(ctx.read(layout.HIERARCHY).read_bytes(), type=Hierarchy)
    view = _View(spanned, rows, tree, config.top_documents)
    texts = (sides(rows[item].messages) for item in spanned.documents.tolist())
    keywords = distinctive_keywords(texts, [spanned.used[item] for item in active], config.top_documents)
    count = len(members)
    atoms = _atoms(ctx, view, members, codes, found, coherence[:count], keywords[:count])
    behaviours = _behaviours(view, found, strength, orders, coherence[count:], keywords[count:])
    warnings = _warnings(atoms, behaviours, codes.shape[1], config.min_active)
    if config.surrogates:
        warnings += _uncompared(atoms, behaviours)
    if config.labels:
        subjects = [
            Subject(
                kind="atom" if place < count else "behaviour",
                index=members[place].index if place < count else place - count,
                keywords=keywords[place].anywhere,
                active=spanned.used[active[place]],
            )
            for place in range(len(active))
        ]
        labels, missing = label(ctx, _by_rank(subjects, atoms, behaviours), spanned.documents, rows)
        atoms = [msgspec.structs.replace(item, label=labels.get(("atom", item.index))) for item in atoms]
        behaviours = [
            msgspec.structs.replace(item, label=labels.get(("behaviour", item.index))) for item in behaviours
        ]
        warnings += missing
    ctx.write_bytes(layout.ATOMS, msgspec.json.format(msgspec.json.encode(atoms), indent=1))
    ctx.write_bytes(layout.BEHAVIOURS, msgspec.json.format(msgspec.json.encode(behaviours), indent=1))
    keep(ctx, warnings)
    ctx.progress(2, 2, "steps")
    return UnitResult(summary={"warnings": warnings, "n_atoms": len(atoms)})


def _atoms(
    ctx: StageContext,
    view: _View,
    members: Sequence[Membership],
    codes: NDArray[np.float64],
    found: Found,
    coherence: Sequence[Coherence],
    keywords: Sequence[Keywords],
) -> list[Atom]:
    spanned = view.spanned
    signs = read_dictionary(ctx)["signs"]
    made = read_made(ctx)
    behaviour = {atom: number for number, group in enumerate(found.behaviours) for atom in group.atoms}
    evidence = [found.atoms[member.index] for member in members]
    score = scores(evidence, [[member.index] for member in members], view.tree)
    places = ranks(score, [item.own for item in coherence], [member.n_active for member in members])
    atoms = [
        Atom(
            index=member.index,
            rank=places[item],
            score=score[item],
            coherence=coherence[item].own,
            null_coherence=coherence[item].null_mean,
            null_coherence_95=coherence[item].null_95,
            n_active=member.n_active,
            n_positive=len(member.positive),
            n_negative=len(member.negative),
            sign=int(signs[member.index]),
            mean_coefficient=member.mean_coefficient,
            energy_retained=energy_retained(
                spanned.used[member.positive[: view.limit]], spanned.energy_kept, spanned.energy_total
            ),
            vector_norm=made.norms[member.index],
            keywords=keywords[item].anywhere,
            prompt_keywords=keywords[item].prompt,
            response_keywords=keywords[item].response,
            top_documents=view.listed(member.positive, codes[:, member.index]),
            bottom_documents=view.listed(member.negative, codes[:, member.index]),
            share=member.n_active / len(spanned.documents),
            evidence=evidence[item],
            behaviour=behaviour.get(member.index),
            exemplars=view.exemplars(member.positive, codes[:, member.index]),
            vector_cosine=made.cosines.get(member.index),
        )
        for item, member in enumerate(members)
    ]
    return sorted(atoms, key=lambda atom: atom.rank)


def _behaviours(
    view: _View,
    found: Found,
    strength: NDArray[np.float64],
    orders: Sequence[NDArray[np.int64]],
    coherence: Sequence[Coherence],
    keywords: Sequence[Keywords],
) -> list[Behaviour]:
    spanned = view.spanned
    groups = [group.atoms for group in found.behaviours]
    score = scores([group.evidence for group in found.behaviours], groups, view.tree)
    places = ranks(score, [item.own for item in coherence], [len(order) for order in orders])
    strongest = strength.argmax(1)[strength.any(1)] if strength.size else np.zeros(0, dtype=np.int64)
    behaviours = [
        Behaviour(
            index=item,
            rank=places[item],
            score=score[item],
            atoms=group.atoms,
            n_documents=len(orders[item]),
            share=int((strongest == item).sum()) / len(spanned.documents),
            coherence=coherence[item].own,
            null_coherence=coherence[item].null_mean,
            null_coherence_95=coherence[item].null_95,
            evidence=group.evidence,
            energy_retained=energy_retained(
                spanned.used[orders[item][: view.limit]], spanned.energy_kept, spanned.energy_total
            ),
            keywords=keywords[item].anywhere,
            prompt_keywords=keywords[item].prompt,
            response_keywords=keywords[item].response,
            top_documents=view.listed(orders[item], strength[:, item]),
            documents=[
                DocumentStrength(
                    document=int(spanned.documents[spanned.used[position]]),
                    strength=float(strength[position, item]),
                )
                for position in orders[item]
            ],
            exemplars=view.exemplars(orders[item], strength[:, item]),
        )
        for item, group in enumerate(found.behaviours)
    ]
    return sorted(behaviours, key=lambda behaviour: behaviour.rank)


def _by_rank(
    subjects: Sequence[Subject], atoms: Sequence[Atom], behaviours: Sequence[Behaviour]
) -> list[Subject]:
    """Behaviours by rank, then atoms by rank: what a limit leaves out is what matters least."""
    by_key = {(subject.kind, subject.index): subject for subject in subjects}
    found = [by_key["behaviour", item.index] for item in behaviours]
    return found + [by_key["atom", item.index] for item in atoms]


def _q_values(atoms: Sequence[Atom], behaviours: Sequence[Behaviour]) -> dict[str, list[float | None]]:
    """Of each kind."""
    return {
        "atom": [item.evidence.q_value for item in atoms],
        "behaviour": [item.evidence.q_value for item in behaviours],
    }


def _uncompared(atoms: Sequence[Atom], behaviours: Sequence[Behaviour]) -> list[str]:
    """Surrogates were made, and of a kind there were too few to tell chance by."""
    kinds = _q_values(atoms, behaviours)
    told = [counted(found.count(None), kind) for kind, found in kinds.items() if None in found]
    if not told:
        return []
    return [
        f"chance was not measured for {' and '.join(told)}, ranked as if it were passed: surrogates gave "
        f"fewer than {FEWEST_NULL} of the kind to compare with; more `surrogates` give more"
    ]


def _warnings(
    atoms: Sequence[Atom], behaviours: Sequence[Behaviour], learned: int, min_active: int
) -> list[str]:
    if not atoms:
        return [f"this audit found nothing: none of {learned} atoms has {min_active} active documents"]
    kinds = _q_values(atoms, behaviours)
    tested = {kind: [q for q in found if q is not None] for kind, found in kinds.items()}
    values = [q for found in tested.values() for q in found]
    if values and min(values) > DISCOVERY_RATE:
        told = " and ".join(counted(len(found), kind) for kind, found in tested.items() if found)
        return [
            f"this audit found nothing: none of {told} parts the documents more than surrogates give by "
            f"chance, at a false-discovery rate of {DISCOVERY_RATE:.0%}"
        ]
    if len(atoms) < FEW * learned:
        return [
            f"only {counted(len(atoms), 'atom')} of {learned} reached {min_active} active documents; "
            "try a smaller alpha"
        ]
    return []
