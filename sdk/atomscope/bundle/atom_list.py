"""A list of atoms that prints as a table, slices, filters and sorts; of a bundle or of the API alike."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from atomscope.errors import UsageError
from atomscope.text import visible
from atomscope.types.atoms import Atom, DocumentRef, Evidence

SortKey = Literal["rank", "score", "coherence", "n_active", "mean_coefficient", "index"]
Sign = Literal["positive", "negative"]


def check_sign(sign: str) -> None:
    """Raise `UsageError` unless `sign` is one of the two."""
    if sign not in get_args(Sign):
        raise UsageError(f"sign={sign!r}: one of {', '.join(get_args(Sign))} is expected")


class AtomAttributes:
    """What every handle of an atom shares: the attributes of its record."""

    def __init__(self, atom: Atom, audit_id: str | None = None) -> None:
        self.atom = atom
        """The whole record."""
        self.audit_id = audit_id
        """The audit that it is of; None for a record by itself."""

    @property
    def index(self) -> int:
        return self.atom.index

    @property
    def rank(self) -> int:
        return self.atom.rank

    @property
    def score(self) -> float:
        return self.atom.score

    @property
    def evidence(self) -> Evidence:
        return self.atom.evidence

    @property
    def share(self) -> float:
        return self.atom.share

    @property
    def behaviour(self) -> int | None:
        return self.atom.behaviour

    @property
    def coherence(self) -> float:
        return self.atom.coherence

    @property
    def null_coherence(self) -> float:
        return self.atom.null_coherence

    @property
    def null_coherence_95(self) -> float:
        return self.atom.null_coherence_95

    @property
    def n_active(self) -> int:
        return self.atom.n_active

    @property
    def n_positive(self) -> int:
        return self.atom.n_positive

    @property
    def n_negative(self) -> int:
        return self.atom.n_negative

    @property
    def sign(self) -> int:
        return self.atom.sign

    @property
    def mean_coefficient(self) -> float:
        return self.atom.mean_coefficient

    @property
    def energy_retained(self) -> float:
        return self.atom.energy_retained

    @property
    def vector_norm(self) -> float:
        return self.atom.vector_norm

    @property
    def vector_cosine(self) -> float | None:
        return self.atom.vector_cosine

    @property
    def keywords(self) -> list[str]:
        return self.atom.keywords

    @property
    def label(self) -> str | None:
        return self.atom.label

    @property
    def top_documents(self) -> list[DocumentRef]:
        return self.atom.top_documents

    @property
    def bottom_documents(self) -> list[DocumentRef]:
        return self.atom.bottom_documents

    def __repr__(self) -> str:
        terms = visible(", ".join(self.keywords[:SHOWN_KEYWORDS]), PREVIEW)
        measures = f"rank={self.rank} coherence={self.coherence:.3f} n_active={self.n_active}"
        return f"<Atom {self.index} {measures} [{terms}]>"


A = TypeVar("A", bound=AtomAttributes)


class AtomList(RankedList[A]):
    """Atoms in order of rank, unless sorted otherwise. Slices, filters and sorts give a new list."""

    kind = "atom"
    sort_keys = get_args(SortKey)

    def filter(
        self,
        where: Callable[[A], bool] | None = None,
        *,
        min_coherence: float | None = None,
        min_active: int | None = None,
        keyword: str | None = None,
    ) -> AtomList[A]:
        """The atoms that meet every condition given; `keyword` is matched whole, whatever its case.

        Raises `ValueError` for a coherence that is not finite: nothing compares with it.
        """
        if min_coherence is not None and not math.isfinite(min_coherence):
            raise UsageError(f"min_coherence must be a finite number, not {min_coherence}")
        wanted = keyword.casefold() if keyword is not None else None
        return AtomList(
            [
                atom
                for atom in self._items
                if (min_coherence is None or atom.coherence >= min_coherence)
                and (min_active is None or atom.n_active >= min_active)
                and (wanted is None or wanted in (term.casefold() for term in atom.keywords))
                and (where is None or where(atom))
            ]
        )

    def sort_by(self, key: SortKey, *, descending: bool = False) -> AtomList[A]:
        """A list sorted by one attribute; equal ones stay in order of rank."""
        return self.sorted_by(key, descending=descending)

    def table(self, limit: int | None = SHOWN) -> str:
        """The atoms as a plain text table, one a line, every foreign character escaped."""
        header = (
            "rank",
            "atom",
            "score",
            "q",
            "coherence",
            "null",
            "active",
            "mean",
            "keywords",
            "first document",
        )
        return text_table(
            header, [_row(atom.atom) for atom in self._items[:limit]], len(self._items), "atoms"
        )


def _row(atom: Atom) -> tuple[str, ...]:
    return (
        str(atom.rank),
        str(atom.index),
        f"{atom.score:.3f}",
        rate(atom.evidence.q_value),
        f"{atom.coherence:.3f}",
        f"{atom.null_coherence:.3f}",
        str(atom.n_active),
        f"{atom.mean_coefficient:.3f}",
        *described(atom.label, atom.keywords, atom.top_documents),
    )
