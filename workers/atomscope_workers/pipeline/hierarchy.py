"""The tree from which behaviours were cut, as it is kept for a reader."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from atomscope.types.hierarchy import Hierarchy, Merge
from atomscope_workers.pipeline.behaviours import CUT
from atomscope_workers.pipeline.merging import Grouping


def hierarchy(atoms: Sequence[int] | NDArray[np.int64], grouping: Grouping, cosine: float = CUT) -> Hierarchy:
    """The tree of a grouping over atoms of these indices (A), cut so that it gives the grouping's groups.

    `cosine` is the one from which atoms were joined. Where that left too many groups, more were joined: the
    cut then lies at the height of the last merge that was made.
    """
    heights = grouping.tree[:, 2]
    made = len(atoms) - len(grouping.groups)
    return Hierarchy(
        atoms=[int(atom) for atom in atoms],
        merges=[
            Merge(left=int(left), right=int(right), height=float(height), size=int(size))
            for left, right, height, size in grouping.tree
        ],
        cut=max(1.0 - cosine, float(heights[made - 1])) if made else 1.0 - cosine,
    )
