"""In which order atoms and behaviours are read.

What stands out most comes first. Tightness does not tell it: answers of one word are tight, long ones
never; *prominence* does. But the sentences of one template stand out each by itself, and would fill a
list's beginning with one kind of thing. So each counts by the square of how far it lies, in the tree over
atoms, from the nearest that stands out more, as peaks of density are chosen (Rodriguez and Laio 2014).
"""

from __future__ import annotations

from collections.abc import Sequence

from atomscope.types.atoms import Evidence
from atomscope.types.hierarchy import Hierarchy
from atomscope_workers.pipeline.evidence import DISCOVERY_RATE


def own_score(evidence: Evidence) -> float:
    """Prominence (standard deviations) times stability, or 0 for what chance would give.

    What was not measured has no prominence; without other fits stability is left out.
    """
    if evidence.q_value is not None and evidence.q_value > DISCOVERY_RATE:
        return 0.0
    stands_out = max(0.0, evidence.prominence or 0.0)
    return stands_out * (evidence.stability if evidence.stability is not None else 1.0)


def scores(evidence: Sequence[Evidence], groups: Sequence[Sequence[int]], tree: Hierarchy) -> list[float]:
    """What each is ranked by: its own score times the square of how far it lies apart.

    `groups` holds the atoms of each. How far is the height at which it is joined to one of a higher own
    score, or of an equal one before it, as a share of the tree's: 1 for the highest, and for what is not in
    the tree.
    """
    own = [own_score(item) for item in evidence]
    of_atom = {atom: item for item, group in enumerate(groups) for atom in group}
    apart = [1.0] * len(own)
    highest = [of_atom.get(atom) for atom in tree.atoms]
    for merge in tree.merges:
        sides = {item for item in (highest[merge.left], highest[merge.right]) if item is not None}
        best = min(sides, key=lambda item: (-own[item], item), default=None)
        highest.append(best)
        for item in sides - {best}:
            apart[item] = merge.height / (tree.merges[-1].height or 1.0)
    return [score * share**2 for score, share in zip(own, apart, strict=True)]


def ranks(scores: Sequence[float], coherence: Sequence[float], n_active: Sequence[int]) -> list[int]:
    """Place of each from 1: by score, then coherence, then active documents, then order."""
    keys = list(zip(scores, coherence, n_active, strict=True))
    order = sorted(range(len(keys)), key=lambda item: (*(-value for value in keys[item]), item))
    places = [0] * len(order)
    for place, item in enumerate(order, start=1):
        places[item] = place
    return places
