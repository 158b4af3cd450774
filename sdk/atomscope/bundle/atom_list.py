"""A list of atoms that prints as a table, slices, filters and sorts; of a bundle or of the API alike."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, Literal, TypeVar, overload

from rich.cells import cell_len

from atomscope.errors import SteeringError
from atomscope.text import visible
from atomscope.types.atoms import Atom, DocumentRef

SortKey = Literal["rank", "coherence", "n_active", "mean_coefficient", "index"]

_SHOWN_KEYWORDS = 6
_SHOWN_ATOMS = 50
_PREVIEW = 60
_FIRST_TEXT_COLUMN = 6
"""Columns before it are numbers, set to the right."""


class AtomAttributes:
    """What every handle of an atom shares: the attributes of its record."""

    def __init__(self, atom: Atom) -> None:
        self.atom = atom
        """The whole record."""

    @property
    def index(self) -> int:
        return self.atom.index

    @property
    def rank(self) -> int:
        return self.atom.rank

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
        terms = visible(", ".join(self.keywords[:_SHOWN_KEYWORDS]), _PREVIEW)
        measures = f"rank={self.rank} coherence={self.coherence:.3f} n_active={self.n_active}"
        return f"<Atom {self.index} {measures} [{terms}]>"


def strengths_by_index(strengths: Mapping[AtomAttributes, float] | Mapping[int, float]) -> dict[int, float]:
    """Strengths keyed by atom index.

    Raises `SteeringError` when a key is no atom, a strength is no number, or an atom is named twice.
    """
    found: dict[int, float] = {}
    for key, strength in strengths.items():
        try:
            atom = key.index if isinstance(key, AtomAttributes) else operator.index(key)
        except TypeError as error:
            raise SteeringError(f"{key!r} is neither an atom nor the index of one") from error
        if atom in found:
            raise SteeringError(f"atom {atom} was named twice")
        try:
            found[atom] = float(strength)
        except (TypeError, ValueError) as error:
            raise SteeringError(f"the strength of atom {atom} is {strength!r}, not a number") from error
    return found


A = TypeVar("A", bound=AtomAttributes)


class AtomList(Sequence[A], Generic[A]):
    """Atoms in order of rank, unless sorted otherwise. Slices, filters and sorts give a new list."""

    def __init__(self, atoms: Sequence[A]) -> None:
        self._atoms = tuple(atoms)

    @overload
    def __getitem__(self, item: int) -> A: ...
    @overload
    def __getitem__(self, item: slice) -> AtomList[A]: ...
    def __getitem__(self, item: int | slice) -> A | AtomList[A]:
        """An atom by its position in this list, or a part of the list."""
        if isinstance(item, slice):
            return AtomList(self._atoms[item])
        return self._atoms[item]

    def __len__(self) -> int:
        return len(self._atoms)

    def __iter__(self) -> Iterator[A]:
        return iter(self._atoms)

    def get(self, index: int) -> A:
        """The atom of dictionary index `index`; raises `KeyError` when this list does not hold it."""
        for atom in self._atoms:
            if atom.index == index:
                return atom
        raise KeyError(f"no atom {index} in this list")

    def filter(
        self,
        where: Callable[[A], bool] | None = None,
        *,
        min_coherence: float | None = None,
        min_active: int | None = None,
        keyword: str | None = None,
    ) -> AtomList[A]:
        """The atoms that meet every condition given; `keyword` is matched whole, whatever its case."""
        wanted = keyword.casefold() if keyword is not None else None
        return AtomList(
            [
                atom
                for atom in self._atoms
                if (min_coherence is None or atom.coherence >= min_coherence)
                and (min_active is None or atom.n_active >= min_active)
                and (wanted is None or wanted in (term.casefold() for term in atom.keywords))
                and (where is None or where(atom))
            ]
        )

    def sort_by(self, key: SortKey, *, descending: bool = False) -> AtomList[A]:
        """A list sorted by one attribute; equal ones stay in order of rank."""
        sign = -1 if descending else 1
        return AtomList(sorted(self._atoms, key=lambda atom: (sign * _measure(atom, key), atom.rank)))

    def table(self, limit: int | None = _SHOWN_ATOMS) -> str:
        """The atoms as a plain text table, one a line, every foreign character escaped."""
        shown = self._atoms[:limit]
        if not shown:
            return "no atoms"
        rows = [("rank", "atom", "coherence", "null", "active", "mean", "keywords", "first document")]
        for atom in shown:
            first = atom.top_documents[0] if atom.top_documents else None
            title = atom.label if atom.label is not None else ", ".join(atom.keywords[:_SHOWN_KEYWORDS])
            rows.append(
                (
                    str(atom.rank),
                    str(atom.index),
                    f"{atom.coherence:.3f}",
                    f"{atom.null_coherence:.3f}",
                    str(atom.n_active),
                    f"{atom.mean_coefficient:.3f}",
                    visible(title, _PREVIEW),
                    f"{first.document}: {visible(first.preview, _PREVIEW)}" if first is not None else "",
                )
            )
        # Measured in terminal cells: a letter of some scripts takes two.
        widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(map(_padded, row, widths, range(len(widths)))).rstrip() for row in rows]
        if len(shown) < len(self._atoms):
            lines.append(f"... and {len(self._atoms) - len(shown)} more")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<{len(self)} atoms>\n{self.table()}" if self._atoms else "<0 atoms>"


def _measure(atom: AtomAttributes, key: SortKey) -> float:
    """The attribute to sort by; raises `ValueError` for another name."""
    match key:
        case "rank":
            return atom.rank
        case "coherence":
            return atom.coherence
        case "n_active":
            return atom.n_active
        case "mean_coefficient":
            return atom.mean_coefficient
        case "index":
            return atom.index
    raise ValueError(f"atoms sort by rank, coherence, n_active, mean_coefficient or index, not {key!r}")


def _padded(cell: str, width: int, column: int) -> str:
    gap = " " * (width - cell_len(cell))
    return cell + gap if column >= _FIRST_TEXT_COLUMN else gap + cell
