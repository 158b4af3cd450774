"""The span of the documents: atoms and residuals as vectors whose inner products can be taken.

Everything that a dictionary learner does to its atoms is linear in the documents: an atom is a weighted sum
of rows, and of it only inner products with rows and with other atoms are ever needed. So the learner sees a
`Span`, and does not know whether rows are held as coordinates or known by their inner products alone.

A vector of the span is stored as one row of a tensor of `width` columns:

- `RowSpan`: its coordinates; `width` is the number of coordinates p.
- `GramSpan`: its document weights w (N) and, beside them, G w (N), so that no product with the N x N matrix
  is needed to take its norm; `width` is 2 N.
- `DirectionSpan` (`direction_span`): its document weights and its coordinates along R directions; `width` is
  N + R.

Rows are of unit norm: a document counts by the direction of its whitened gradient, not by its length (3.3).
"""

from __future__ import annotations

from typing import Protocol, Self

import torch
from scipy.linalg import eigh
from torch.nn.functional import embedding_bag

_FEW = 0.05
"""Share of weights that are not zero below which they are few."""
_ROWS = 1024
"""Rows of a Gram matrix that are scaled at once."""
_EIGENVALUE_FLOOR = 1e-6
"""Share of the largest eigenvalue below which a direction of a Gram matrix is rounding."""


class Span(Protocol):
    """Vectors in the span of N documents of unit norm; tensors are float32 and on `device`, whose it is."""

    @property
    def documents(self) -> int:
        """N."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the work is done: tensors given and taken are there."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same documents on another device."""
        ...

    @property
    def width(self) -> int:
        """Columns in which a vector is stored."""
        ...

    def combine(self, weights: torch.Tensor) -> torch.Tensor:
        """The vectors sum_i weights[k, i] x_i, from (K, N) to (K, width)."""
        ...

    def products(self, vectors: torch.Tensor) -> torch.Tensor:
        """Inner products of every document with vectors (K, width): (N, K)."""
        ...

    def inner(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Inner products of vectors (K, width) and (L, width): (K, L)."""
        ...

    def row(self, position: int) -> torch.Tensor:
        """Inner products (N,) of every document with one."""
        ...

    def cosines(self, positions: torch.Tensor) -> torch.Tensor:
        """Inner products (n, n) of some documents."""
        ...

    def principal(self, count: int) -> torch.Tensor:
        """Document weights (R, N) of the unit vectors along which the documents' squares are largest.

        They are orthogonal; R is `count`, or as many as the documents span.
        """
        ...

    def coordinates(self) -> torch.Tensor:
        """The documents in coordinates of their own, (N, any), with the same inner products."""
        ...

    def from_coordinates(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors (K, width) from `coordinates`' columns (K, any)."""
        ...


class RowSpan:
    """Documents by their coordinates, (N, p)."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    @property
    def documents(self) -> int:
        return self.rows.shape[0]

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def to(self, device: torch.device) -> RowSpan:
        return RowSpan(self.rows.to(device))

    @property
    def width(self) -> int:
        return self.rows.shape[1]

    def combine(self, weights: torch.Tensor) -> torch.Tensor:
        return _weighted_sums(weights, self.rows)

    def products(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.rows @ vectors.T

    def inner(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left @ right.T

    def row(self, position: int) -> torch.Tensor:
        return self.rows @ self.rows[position]

    def cosines(self, positions: torch.Tensor) -> torch.Tensor:
        return self.rows[positions] @ self.rows[positions].T

    def principal(self, count: int) -> torch.Tensor:
        values, vectors = above_rounding((self.rows.T @ self.rows).double(), count)
        return (self.rows @ (vectors / values).float()).T

    def coordinates(self) -> torch.Tensor:
        return self.rows

    def from_coordinates(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors


class GramSpan:
    """Documents by their inner products alone, a symmetric (N, N) matrix."""

    def __init__(self, gram: torch.Tensor) -> None:
        self.gram = gram
        self._eigen: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def documents(self) -> int:
        return self.gram.shape[0]

    @property
    def device(self) -> torch.device:
        return self.gram.device

    def to(self, device: torch.device) -> GramSpan:
        return GramSpan(self.gram.to(device))

    @property
    def width(self) -> int:
        return 2 * self.gram.shape[0]

    def combine(self, weights: torch.Tensor) -> torch.Tensor:
        return torch.cat([weights, _weighted_sums(weights, self.gram)], dim=1)

    def products(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors[:, self.documents :].T

    def inner(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left[:, : self.documents] @ right[:, self.documents :].T

    def row(self, position: int) -> torch.Tensor:
        return self.gram[position]

    def cosines(self, positions: torch.Tensor) -> torch.Tensor:
        return self.gram[positions][:, positions]

    def principal(self, count: int) -> torch.Tensor:
        values, vectors = above_rounding(self.gram.to(torch.float64, copy=True), count)
        return (vectors * values.rsqrt()).T.float()

    def coordinates(self) -> torch.Tensor:
        values, vectors = self._decomposed()
        return vectors * values.sqrt()

    def from_coordinates(self, vectors: torch.Tensor) -> torch.Tensor:
        values, basis = self._decomposed()
        return self.combine((vectors * values.rsqrt()) @ basis.T)

    def _decomposed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Eigenvalues (r) above rounding and eigenvectors (N, r)."""
        if self._eigen is None:
            values, vectors = above_rounding(self.gram.double())
            self._eigen = values.float(), vectors.float()
        return self._eigen


def above_rounding(matrix: torch.Tensor, most: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rising eigenvalues (r), eigenvectors (n, r) of a symmetric matrix, but for those that are rounding.

    Of the largest `most` alone where that is given: a CPU finds few of many in less than half of the time,
    and writes over the matrix meanwhile.
    """
    size = len(matrix)
    if most is None or most >= size or matrix.device.type != "cpu":
        values, vectors = torch.linalg.eigh(matrix)
    else:
        few = (size - most, size - 1)
        # Turned about, which a symmetric matrix does not show, it is as LAPACK wants it, and not copied.
        found = eigh(matrix.numpy().T, subset_by_index=few, overwrite_a=True, check_finite=False)
        values, vectors = map(torch.from_numpy, found)
    if most is not None:
        values, vectors = values[-most:], vectors[:, -most:]
    kept = values > _EIGENVALUE_FLOOR * values.max().clamp_min(1e-30)
    return values[kept], vectors[:, kept]


def _weighted_sums(weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`weights` (K, N) times `rows` (N, p); on a CPU few weights are added up, not multiplied out."""
    if rows.device.type != "cpu" or int(weights.count_nonzero()) > _FEW * weights.numel():
        return weights @ rows
    atoms, documents = weights.nonzero(as_tuple=True)
    return embedding_bag(
        documents,
        rows,
        torch.searchsorted(atoms, torch.arange(len(weights))),
        mode="sum",
        per_sample_weights=weights[atoms, documents],
    )


def unit_rows(rows: torch.Tensor) -> RowSpan:
    """Documents by rows (N, p), none of them zero, scaled to unit norm."""
    return RowSpan(rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64).float())


def unit_gram(gram: torch.Tensor) -> GramSpan:
    """Documents by their inner products (N, N), none of them zero, scaled to unit norm."""
    scale = gram.diagonal().double().rsqrt()
    scaled = torch.empty_like(gram, dtype=torch.float32)
    for start in range(0, len(gram), _ROWS):  # in float64, of which the whole would be twice the matrix
        part = slice(start, start + _ROWS)
        scaled[part] = (gram[part].double() * scale[part, None]).mul_(scale)
    scaled.fill_diagonal_(1.0)
    return GramSpan(scaled)
