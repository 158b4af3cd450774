"""A list in order of rank that slices and prints as a table: what atoms and behaviours have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import ClassVar, Protocol, Self, TypeVar, overload

from rich.cells import cell_len

from atomscope.text import counted, visible
from atomscope.types.atoms import DocumentRef

SHOWN = 50
"""Lines of a table, unless asked otherwise."""
SHOWN_KEYWORDS = 6
PREVIEW = 60
_TEXT_COLUMNS = 2
"""The last ones; the others are numbers, set to the right."""


class Ranked(Protocol):
    """What can stand in such a list."""

    @property
    def index(self) -> int: ...

    @property
    def rank(self) -> int: ...


T = TypeVar("T", bound=Ranked)


class RankedList(Sequence[T]):
    """Items in order of rank, unless sorted otherwise. A slice is a list of the same kind."""

    kind: ClassVar[str] = "item"
    sort_keys: ClassVar[tuple[str, ...]] = ()
    """Attributes to sort by."""

    def __init__(self, items: Sequence[T]) -> None:
        self._items = tuple(items)

    @overload
    def __getitem__(self, item: int) -> T: ...
    @overload
    def __getitem__(self, item: slice) -> Self: ...
    def __getitem__(self, item: int | slice) -> T | Self:
        """An item by its position in this list, or a part of the list."""
        if isinstance(item, slice):
            return type(self)(self._items[item])
        return self._items[item]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def get(self, index: int) -> T:
        """The item of that index; raises `KeyError` when this list does not hold it."""
        for item in self._items:
            if item.index == index:
                return item
        raise KeyError(f"no {self.kind} {index} in this list")

    def sorted_by(self, key: str, *, descending: bool) -> Self:
        """A list sorted by one attribute; equal ones stay in order of rank.

        Raises `ValueError` for one that is not among `sort_keys`.
        """
        if key not in self.sort_keys:
            raise ValueError(f"{self.kind}s sort by {', '.join(self.sort_keys)}, not {key!r}")
        sign = -1 if descending else 1
        measured: Callable[[T], float] = attrgetter(key)
        return type(self)(sorted(self._items, key=lambda item: (sign * measured(item), item.rank)))

    def table(self, limit: int | None = SHOWN) -> str:
        """The items as a plain text table, one a line, every foreign character escaped."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<{counted(len(self), self.kind)}>" + (f"\n{self.table()}" if self._items else "")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], total: int, kind: str) -> str:
    """Rows under their header, columns aligned; says how many of the `total` are not shown."""
    if not rows:
        return f"no {kind}"
    table = [header, *rows]
    # Measured in terminal cells: a letter of some scripts takes two.
    widths = [max(cell_len(row[column]) for row in table) for column in range(len(header))]
    first_text = len(header) - _TEXT_COLUMNS
    lines = [
        "  ".join(
            _padded(cell, widths[column], column >= first_text) for column, cell in enumerate(row)
        ).rstrip()
        for row in table
    ]
    if len(rows) < total:
        lines.append(f"... and {total - len(rows)} more")
    return "\n".join(lines)


def described(
    label: str | None, keywords: Sequence[str], documents: Sequence[DocumentRef]
) -> tuple[str, str]:
    """The two text columns: a label or keywords, and the first document."""
    title = label if label is not None else ", ".join(keywords[:SHOWN_KEYWORDS])
    first = documents[0] if documents else None
    shown = f"{first.document}: {visible(first.preview, PREVIEW)}" if first is not None else ""
    return visible(title, PREVIEW), shown


def rate(value: float | None) -> str:
    """A p-value or false-discovery rate, `-` where there is none."""
    return "-" if value is None else f"{value:.1g}"


def _padded(cell: str, width: int, text: bool) -> str:
    gap = " " * (width - cell_len(cell))
    return cell + gap if text else gap + cell
