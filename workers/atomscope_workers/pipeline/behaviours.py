"""Behaviours: atoms that pull the same documents the same way, grouped into what a reviewer can read.

`grouping` joins atoms that lie near enough, and then on, the nearest first, until no more than a stated
number are left. A document's strength on a behaviour is the sum of its codes on the behaviour's atoms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MEMBERSHIPS = 3
"""Behaviours to which one document can belong."""
CUT = 0.7
"""Height up to which atoms are one behaviour, however few there are: a cosine of 0.3 between average ones."""
FEWEST, MOST = 4, 40


def behaviour_count(wanted: int | Literal["auto"], documents: int) -> int:
    """Most behaviours: as asked, or for `auto` the square root of the documents, from 4 to 40."""
    return min(max(round(math.sqrt(documents)), FEWEST), MOST) if wanted == "auto" else wanted


def strengths(
    codes: NDArray[np.float64], groups: Sequence[Sequence[int] | NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Strength (N, behaviours) from codes (N, K): the sum of a document's positive codes on the group.

    A document belongs to the `MEMBERSHIPS` behaviours on which it is strongest; on the others it is zero.
    """
    if not groups:
        return np.zeros((len(codes), 0))
    found = np.stack([codes[:, list(members)].clip(min=0).sum(1) for members in groups], axis=1)
    if found.shape[1] > MEMBERSHIPS:
        # A stable order, so that of equal ones the first behaviours are kept.
        order = np.argsort(-found, axis=1, kind="stable")
        np.put_along_axis(found, order[:, MEMBERSHIPS:], 0.0, axis=1)
    return found
