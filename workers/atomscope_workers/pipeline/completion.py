"""Documents that belong to an atom without carrying its code.

A sparse code explains a document by as few atoms as it can. Where two atoms pull a document, the code goes to
one of them, and the other, often the rarer, loses a document that is its own. So an atom that parts the
documents into two groups (`separation`) shares a part of its strength among the upper group, by how strongly
it pulls each; its total strength stays what it was.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from atomscope_workers.pipeline.fit import ACTIVE
from atomscope_workers.pipeline.separation import parting, pulls
from atomscope_workers.pipeline.span import Span

SHARE = 0.25
"""Of an atom's strength that is shared out by pull."""


def completed(span: Span, codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Strengths (N, K) from non-negative codes (N, K); the column sums are the same.

    Codes stay as they are on an atom of one document, and on one whose two groups gain no more nats than the
    logarithm of the number of documents: the price, by the Bayesian information criterion, of the two
    parameters that two groups have more than one skewed group.
    """
    if not codes.size:
        return codes
    pulled = pulls(span, codes)
    parted = parting(pulled)
    shares = (parted.nats > math.log(len(codes))) & ((codes > ACTIVE).sum(0) > 1)
    wanted = parted.upper & (pulled > 0) & shares
    shared = np.where(wanted, pulled, 0.0)
    totals = shared.sum(0)
    found = codes.copy()
    given = np.flatnonzero(totals > 0)
    part = SHARE * codes[:, given].sum(0) / totals[given]
    found[:, given] = (1 - SHARE) * codes[:, given] + part * shared[:, given]
    return found
