"""Many documents as a span: what they have in common along some directions, and a part of their own.

A unit document x is its coordinates p along R orthonormal directions and what is left, of squared norm 1 -
|p|^2. What is left of different documents is taken to have nothing in common: inner products are p . q, and 1
of a document with itself. That is a factor model of the N x N inner products, of N R numbers.

A vector of the span is stored in N + R columns: the documents' weights, by which its own parts are known, and
its coordinates along the directions.
"""

from __future__ import annotations

import torch

from atomscope_workers.pipeline.span import RowSpan, above_rounding

_ROWS = 8192
"""Documents whose squares are added up in float64 at once."""


class DirectionSpan(RowSpan):
    """Documents by coordinates (N, R) along directions, and squared norms (N,) of their own parts.

    `coordinates` leave own parts out, and no row is longer than one; but for own parts the vectors of
    `principal` are orthonormal.
    """

    def __init__(self, rows: torch.Tensor, own: torch.Tensor) -> None:
        super().__init__(rows)
        self.own = own

    def to(self, device: torch.device) -> DirectionSpan:
        return DirectionSpan(self.rows.to(device), self.own.to(device))

    @property
    def width(self) -> int:
        return sum(self.rows.shape)

    def combine(self, weights: torch.Tensor) -> torch.Tensor:
        return torch.cat([weights, super().combine(weights)], dim=1)

    def products(self, vectors: torch.Tensor) -> torch.Tensor:
        weights, along = self._parts(vectors)
        return torch.addcmul(self.rows @ along.T, self.own[:, None], weights.T)

    def inner(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        (weights, along), (others, across) = self._parts(left), self._parts(right)
        return torch.addmm(along @ across.T, weights * self.own, others.T)

    def row(self, position: int) -> torch.Tensor:
        found = super().row(position)
        found[position] += self.own[position]
        return found

    def cosines(self, positions: torch.Tensor) -> torch.Tensor:
        return super().cosines(positions) + (positions[:, None] == positions) * self.own[positions]

    def from_coordinates(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors of this length along these directions, of the documents that make them so."""
        values, basis = above_rounding((self.rows.T @ self.rows).double())
        along = (vectors.double() @ basis / values).float()
        found = self.combine(along @ (self.rows @ basis.float()).T)
        # Their own parts made them longer than they were asked to be.
        lengths = torch.stack([self.inner(vector[None], vector[None])[0, 0] for vector in found]).sqrt()
        wanted = torch.linalg.vector_norm(vectors, dim=1)
        return found * (wanted / lengths.clamp_min(1e-30))[:, None]

    def _parts(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return vectors[:, : self.documents], vectors[:, self.documents :]


def direction_span(rows: torch.Tensor) -> DirectionSpan:
    """Unit documents by their coordinates (N, R) float32 along orthonormal directions."""
    squares = torch.cat([part.double().square().sum(1) for part in rows.split(_ROWS)])
    # By rounding a row may be longer than the document that it is a part of.
    scale = squares.clamp_min(1).rsqrt().float()
    return DirectionSpan(rows * scale[:, None], (1 - squares).clamp_min(0).float())
