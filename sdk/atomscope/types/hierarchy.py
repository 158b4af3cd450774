"""The tree over an audit's atoms: the cut of it is its behaviours."""

from __future__ import annotations

import math

import msgspec

from atomscope.errors import UsageError

HIGHEST = 2
"""No merge lies higher: one minus the lowest cosine there is."""


class Merge(msgspec.Struct, kw_only=True, frozen=True):
    """Two nodes of the tree joined into one."""

    left: int
    right: int
    height: float
    """How far apart its sides lay, 0 to 2: one minus the cosine between the sums of their documents, times
    a root of the lesser side's weight; and no less than the merge before it."""
    size: int
    """Atoms under it."""


class Hierarchy(msgspec.Struct, kw_only=True, frozen=True):
    """`atoms/hierarchy.json`: the tree over the atoms that are grouped into behaviours.

    Node `i` below the number of atoms is the atom `atoms[i]`; after these come the merges, in order.
    Raises `msgspec.ValidationError` on decoding what is no tree over the atoms, or one whose heights fall.
    """

    atoms: list[int]
    """Indices of the atoms, each once."""
    merges: list[Merge]
    """One less than the atoms, by rising height; the last one holds them all."""
    cut: float
    """Height up to which merges are made: what they join is one behaviour."""

    def __post_init__(self) -> None:
        count = len(self.atoms)
        if len(set(self.atoms)) != count:
            raise ValueError("an atom is listed twice")
        if len(self.merges) != max(count - 1, 0):
            raise ValueError(f"{count} atoms take {max(count - 1, 0)} merges, not {len(self.merges)}")
        if not math.isfinite(self.cut):
            raise ValueError(f"the cut is at {self.cut}")
        sizes, height = [1] * count, -math.inf
        joined: set[int] = set()
        for node, merge in enumerate(self.merges, start=count):
            for side in (merge.left, merge.right):
                if not 0 <= side < node or side in joined:
                    raise ValueError(
                        f"node {node} joins {side}, which is no node before it or has been joined"
                    )
                joined.add(side)
            if merge.size != sizes[merge.left] + sizes[merge.right]:
                raise ValueError(f"node {node} does not hold {merge.size} atoms")
            if not height <= merge.height < math.inf:
                raise ValueError(f"node {node} lies at {merge.height}, below the merge before it")
            sizes.append(merge.size)
            height = merge.height

    def groups(self, height: float | None = None) -> list[list[int]]:
        """The atoms that merges up to a height join, the cut's by default: each rising, by their first.

        At the cut these are the atoms of the behaviours. Raises `UsageError` for a height that is none: not
        between 0 and 2.
        """
        if height is not None and not 0 <= height <= HIGHEST:
            raise UsageError(f"a height between 0 and {HIGHEST} is expected, not {height}")
        height = self.cut if height is None else height
        members: dict[int, list[int]] = {node: [atom] for node, atom in enumerate(self.atoms)}
        for node, merge in enumerate(self.merges, start=len(self.atoms)):
            if merge.height > height:
                break
            members[node] = members.pop(merge.left) + members.pop(merge.right)
        return sorted(sorted(group) for group in members.values())
