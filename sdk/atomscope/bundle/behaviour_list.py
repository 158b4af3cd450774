"""Behaviours of an audit, of a bundle or of the API alike: a list that prints as a table."""

from __future__ import annotations

from typing import Literal, TypeVar, get_args

from atomscope.bundle.ranked_list import (
    PREVIEW,
    SHOWN,
    SHOWN_KEYWORDS,
    RankedList,
    described,
    rate,
    text_table,
)
from atomscope.text import visible
from atomscope.types.atoms import Behaviour, DocumentRef, Evidence

SortKey = Literal["rank", "score", "coherence", "n_documents", "share", "index"]


class BehaviourAttributes:
    """What every handle of a behaviour shares: the attributes of its record."""

    def __init__(self, behaviour: Behaviour, audit_id: str | None = None) -> None:
        self.behaviour = behaviour
        """The whole record."""
        self.audit_id = audit_id
        """The audit that it is of; None for a record by itself."""

    @property
    def index(self) -> int:
        return self.behaviour.index

    @property
    def rank(self) -> int:
        return self.behaviour.rank

    @property
    def score(self) -> float:
        return self.behaviour.score

    @property
    def atoms(self) -> list[int]:
        """Indices of its atoms, strongest first."""
        return self.behaviour.atoms

    @property
    def n_documents(self) -> int:
        return self.behaviour.n_documents

    @property
    def share(self) -> float:
        return self.behaviour.share

    @property
    def coherence(self) -> float:
        return self.behaviour.coherence

    @property
    def energy_retained(self) -> float | None:
        return self.behaviour.energy_retained

    @property
    def evidence(self) -> Evidence:
        return self.behaviour.evidence

    @property
    def keywords(self) -> list[str]:
        return self.behaviour.keywords

    @property
    def label(self) -> str | None:
        return self.behaviour.label

    @property
    def top_documents(self) -> list[DocumentRef]:
        return self.behaviour.top_documents

    def __repr__(self) -> str:
        terms = visible(", ".join(self.keywords[:SHOWN_KEYWORDS]), PREVIEW)
        return f"<Behaviour {self.index} rank={self.rank} documents={self.n_documents} [{terms}]>"


B = TypeVar("B", bound=BehaviourAttributes)


class BehaviourList(RankedList[B]):
    """Behaviours in order of rank, unless sorted otherwise. Slices and sorts give a new list."""

    kind = "behaviour"
    sort_keys = get_args(SortKey)

    def sort_by(self, key: SortKey, *, descending: bool = False) -> BehaviourList[B]:
        """A list sorted by one attribute; equal ones stay in order of rank."""
        return self.sorted_by(key, descending=descending)

    def table(self, limit: int | None = SHOWN) -> str:
        """The behaviours as a plain text table, one a line, every foreign character escaped."""
        header = (
            "rank",
            "behaviour",
            "score",
            "q",
            "stable",
            "text",
            "share",
            "atoms",
            "keywords",
            "first document",
        )
        rows = [_row(item.behaviour) for item in self._items[:limit]]
        return text_table(header, rows, len(self._items), "behaviours")


def _row(behaviour: Behaviour) -> tuple[str, ...]:
    evidence = behaviour.evidence
    return (
        str(behaviour.rank),
        str(behaviour.index),
        f"{behaviour.score:.3f}",
        rate(evidence.q_value),
        "-" if evidence.stability is None else f"{evidence.stability:.2f}",
        "-" if evidence.text_agreement is None else f"{evidence.text_agreement:.2f}",
        f"{behaviour.share:.1%}",
        str(len(behaviour.atoms)),
        *described(behaviour.label, behaviour.keywords, behaviour.top_documents),
    )
