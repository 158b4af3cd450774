"""In which order atoms and behaviours are read.

What stands out most comes first. Tightness does not tell it: answers of one word are tight, long ones
never; *prominence* does. But the sentences of one template stand out each by itself, and would fill a
list's beginning with one kind of thing. So atoms are taken behaviour by behaviour, and behaviours branch by
branch of their tree, cut into as many branches as a reviewer reads: the best of each branch counts in full,
the r-th a part of 1 / r^2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from atomscope.types.atoms import Evidence
from atomscope.types.hierarchy import Hierarchy
from atomscope_workers.pipeline.evidence import DISCOVERY_RATE

READ = 20
"""Branches: things that a reviewer reads."""


def own_score(evidence: Evidence) -> float:
    """Prominence (standard deviations) times stability, or 0 for what chance would give.

    What was not measured has no prominence; without other fits stability is left out.
    """
    if evidence.q_value is not None and evidence.q_value > DISCOVERY_RATE:
        return 0.0
    stands_out = max(0.0, evidence.prominence or 0.0)
    return stands_out * (evidence.stability if evidence.stability is not None else 1.0)


def scores(evidence: Sequence[Evidence], branches: Sequence[int | None]) -> list[float]:
    """What each is ranked by: its own score over the square of its place, from 1, in its branch.

    What is in no branch counts in full. Of equal scores the first has the better place.
    """
    own = [own_score(item) for item in evidence]
    found = list(own)
    seen: Counter[int] = Counter()
    for item in sorted(range(len(own)), key=lambda item: -own[item]):
        branch = branches[item]
        if branch is not None:
            seen[branch] += 1
            found[item] = own[item] / seen[branch] ** 2
    return found


def branches(tree: Hierarchy, behaviours: Sequence[Sequence[int]]) -> list[int]:
    """The branch of each behaviour, a group of atoms at the tree's cut, where at most `READ` are left."""
    if len(behaviours) <= READ:
        return list(range(len(behaviours)))
    height = max(tree.cut, tree.merges[len(tree.atoms) - READ - 1].height)
    branch = {atom: number for number, group in enumerate(tree.groups(height)) for atom in group}
    return [branch[atoms[0]] for atoms in behaviours]


def ranks(scores: Sequence[float], coherence: Sequence[float], n_active: Sequence[int]) -> list[int]:
    """Place of each from 1: by score, then coherence, then active documents, then order."""
    keys = list(zip(scores, coherence, n_active, strict=True))
    order = sorted(range(len(keys)), key=lambda item: (*(-value for value in keys[item]), item))
    places = [0] * len(order)
    for place, item in enumerate(order, start=1):
        places[item] = place
    return places
