"""The audited documents of a bundle as an evaluation needs them: their tokens, and which are whose."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from atomscope.bundle import Bundle, layout
from atomscope.bundle.reader import ACTIVE
from atomscope.errors import InvalidInput
from atomscope.steering import Target
from atomscope_workers.datasets.documents import TokenizedDocument, load_tokens
from atomscope_workers.pipeline.seeds import drawn
from atomscope_workers.query import AuditFiles


def audited_tokens(files: AuditFiles) -> dict[int, TokenizedDocument]:
    """Every audited document by physical row. Raises `InvalidInput` (`old_bundle`) where none are kept."""
    if not files.holds(layout.TOKENS):
        raise InvalidInput(
            "old_bundle",
            f"this bundle holds no {layout.TOKENS}: it was made before documents' tokens were kept, or "
            "it was left out; audit again",
        )
    return load_tokens(files.read(layout.TOKENS))


def own_documents(bundle: Bundle, target: Target) -> list[int]:
    """Rows of an atom's documents of positive strength, or of a behaviour's members, strongest first."""
    if target.kind == "behaviour":
        return [item.document for item in bundle.behaviours.get(target.index).behaviour.documents]
    rows, values = bundle.coefficients.of_atom(target.index)
    order = np.lexsort((rows, -values))
    return rows[order][values[order] > ACTIVE].tolist()


def touched(bundle: Bundle, target: Target) -> set[int]:
    """Rows of all documents on which the target, or an atom of it, has any strength, of either sign."""
    atoms = [target.index] if target.kind == "atom" else bundle.behaviours.get(target.index).behaviour.atoms
    found = set(own_documents(bundle, target))
    for atom in atoms:
        rows, values = bundle.coefficients.of_atom(atom)
        found.update(rows[np.abs(values) > ACTIVE].tolist())
    return found


def neutral_documents(
    bundle: Bundle, targets: Iterable[Target], rows: Iterable[int], seed: int
) -> tuple[list[int], list[int]]:
    """Rows on which none of the targets has any strength, and the others, each in a seeded order.

    The others come by the number of targets that touch them, fewest first.
    """
    taken = [touched(bundle, target) for target in targets]
    listed = sorted(rows)
    order = drawn(seed, "neutral documents").permutation(len(listed))
    mixed = [listed[place] for place in order.tolist()]
    counts = {row: sum(row in part for part in taken) for row in mixed}
    others = sorted((row for row in mixed if counts[row]), key=counts.__getitem__)
    return [row for row in mixed if not counts[row]], others
