"""What a dictionary learner gives, whichever it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

ACTIVE = 1e-6
"""A document is active on an atom when |code| exceeds this (3.4)."""


@dataclass(frozen=True)
class Fit:
    """K atoms over N documents, as the learner left them."""

    atoms: torch.Tensor
    """(K, width) vectors of the span, of unit norm."""
    codes: torch.Tensor
    """(N, K)."""
    alpha: float
    """The penalty of eq. 2 that was used in the end."""
    objective: float
    """Mean over documents of 1/2 |x - c D|^2 + alpha |c|_1, of what was fitted before any were merged."""
    rounds: int
    """Rounds over the documents."""
    converged: bool
    """Whether the learner met its tolerance before the rounds ran out."""
    reseeded: int
    """Atoms begun anew because no document used them."""
    pieces: int
    """Atoms that were fitted, before those that belong together were merged."""
    last_fall: float | None = None
    """Relative fall of the objective over the last round, below zero where it rose; None if not measured."""
    tolerance: float | None = None
    """The fall below which the learner stops; None where it is no measure of its own."""
    warnings: tuple[str, ...] = ()

    @property
    def codes_per_document(self) -> float:
        """Mean number of active codes of a document."""
        return float((self.codes.abs() > ACTIVE).sum()) / max(1, len(self.codes))
