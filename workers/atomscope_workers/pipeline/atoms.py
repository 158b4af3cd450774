"""What an atom is made of: who is active on it, on which side, and how much of them was kept.

An atom's sign is arbitrary, so the solver's row and codes are turned until the codes sum to more than zero.
Documents of positive and of negative code then stand apart: they are opposite behaviours, not one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atomscope_workers.pipeline.fit import ACTIVE


@dataclass(frozen=True)
class Membership:
    """The documents of one atom, as row positions in the whitened matrix."""

    index: int
    """Row of the dictionary."""
    positive: NDArray[np.int64]
    """Positions of positive code, strongest first."""
    negative: NDArray[np.int64]
    """Positions of negative code, strongest first."""
    mean_coefficient: float
    """Mean |code| over the active documents."""

    @property
    def n_active(self) -> int:
        return len(self.positive) + len(self.negative)


def memberships(codes: NDArray[np.float64], min_active: int) -> list[Membership]:
    """The atoms of codes (N, K) with at least `min_active` active documents, by index.

    Ties in strength go to the document that comes first.
    """
    found: list[Membership] = []
    for index in range(codes.shape[1]):
        column = codes[:, index]
        active = np.flatnonzero(np.abs(column) > ACTIVE)
        if len(active) < min_active:
            continue
        ordered = active[np.argsort(-np.abs(column[active]), kind="stable")]
        found.append(
            Membership(
                index=index,
                positive=ordered[column[ordered] > 0],
                negative=ordered[column[ordered] < 0],
                mean_coefficient=float(np.abs(column[active]).mean()),
            )
        )
    return found


def energy_retained(
    members: NDArray[np.int64], kept: NDArray[np.float64], total: NDArray[np.float64]
) -> float:
    """Share of the members' whitened energy that the kept components hold; 0 when they have none."""
    whole = float(total[members].sum())
    return float(kept[members].sum()) / whole if whole > 0 else 0.0
