"""The tree over an audit's atoms as indented lines."""

from __future__ import annotations

from collections.abc import Sequence

from atomscope.bundle.ranked_list import PREVIEW, SHOWN_KEYWORDS
from atomscope.text import counted, visible
from atomscope.types.atoms import Atom, Behaviour
from atomscope.types.hierarchy import Hierarchy

_DEEPEST = 40
"""Levels that are set in; what lies deeper is set in no further."""


def tree_text(tree: Hierarchy, atoms: Sequence[Atom], behaviours: Sequence[Behaviour]) -> str:
    """A line a node, those of best rank first, every foreign character escaped.

    Every merge shows the height at which it was made; what it joins below the cut is one behaviour.
    """
    if not tree.atoms:
        return "no atoms"
    known = {atom.index: atom for atom in atoms}
    by_members = {frozenset(item.atoms): item for item in behaviours}
    count = len(tree.atoms)
    members = [frozenset([atom]) for atom in tree.atoms]
    best = [known[atom].rank if atom in known else len(known) + 1 for atom in tree.atoms]
    for merge in tree.merges:
        members.append(members[merge.left] | members[merge.right])
        best.append(min(best[merge.left], best[merge.right]))

    def node(number: int) -> str:
        if number < count:
            atom = known.get(tree.atoms[number])
            named = "" if atom is None else _title(atom.label, atom.keywords)
            return f"atom {tree.atoms[number]}: {named}".rstrip(": ")
        merge = tree.merges[number - count]
        return f"{merge.height:.3f}, {counted(merge.size, 'atom')}"

    lines = [f"cut at {tree.cut:.3f} (how far apart what is joined may lie)"]
    # Not by recursion: a tree may be as deep as it has atoms.
    waiting: list[tuple[int, int, bool]] = [(count + len(tree.merges) - 1, 0, False)]
    while waiting:
        number, depth, is_within = waiting.pop()
        height = tree.merges[number - count].height if number >= count else float("-inf")
        if not is_within and height <= tree.cut:
            is_within = True
            found = _behaviour(by_members.get(members[number]))
            if number >= count:
                lines.append(_line(depth, f"{found} ({node(number)})"))
            else:
                lines += [_line(depth, found), _line(depth + 1, node(number))]
        else:
            lines.append(_line(depth, node(number)))
        if number >= count:
            merge = tree.merges[number - count]
            sides = sorted((merge.left, merge.right), key=lambda side: best[side], reverse=True)
            waiting += [(side, depth + 1, is_within) for side in sides]
    return "\n".join(lines)


def _behaviour(behaviour: Behaviour | None) -> str:
    if behaviour is None:
        return "no behaviour of the list"
    return (
        f"behaviour {behaviour.index}, rank {behaviour.rank}: {_title(behaviour.label, behaviour.keywords)}"
    )


def _title(label: str | None, keywords: Sequence[str]) -> str:
    return visible(label if label is not None else ", ".join(keywords[:SHOWN_KEYWORDS]), PREVIEW)


def _line(depth: int, text: str) -> str:
    return f"{'  ' * min(depth, _DEEPEST)}{text}"
