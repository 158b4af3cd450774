"""The tree from which behaviours were cut, as it is kept for a reader."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from atomscope.types.hierarchy import Hierarchy, Merge
from atomscope_workers.pipeline.grouping import Grouping


def hierarchy(atoms: Sequence[int] | NDArray[np.int64], grouping: Grouping) -> Hierarchy:
    """The tree of a grouping over atoms of these indices (A), cut so that it gives the grouping's groups."""
    return Hierarchy(
        atoms=[int(atom) for atom in atoms],
        merges=[
            Merge(left=int(left), right=int(right), height=float(height), size=int(size))
            for left, right, height, size in grouping.tree
        ],
        cut=grouping.cut,
    )
