"""Surrogate documents: the documents turned about in sample space, with their mean and covariance kept.

If documents are drawn independently from one Gaussian, whatever its mean and covariance, then Q Z has the
distribution of Z for every orthogonal Q that keeps the vector of ones, and exactly the same mean and
covariance (rotation tests: Langsrud 2005, Statistics and Computing 15). What a fit finds in turned documents
is therefore what it would find if documents varied without falling into groups: every direction is as strong
as it is in the data, and nothing else is left.

Documents are turned in blocks drawn at random, each by an orthogonal matrix of its own, uniform among those
that keep the block's mean; a block of a thousand documents leaves of none of them more than a trace.
"""

from __future__ import annotations

import torch

from atomscope_workers.pipeline.direction_span import DirectionSpan
from atomscope_workers.pipeline.seeds import seeded
from atomscope_workers.pipeline.span import GramSpan, RowSpan, Span, unit_gram, unit_rows

BLOCK = 1024
"""Most documents that are turned together."""


def turned(span: Span, seed: int, purpose: str) -> Span:
    """The surrogates of a span's documents, scaled to unit norm. One seed and purpose give one result."""
    if isinstance(span, GramSpan):
        gram = _turn(span.gram.clone(), seed, purpose).T.contiguous()
        return unit_gram(_turn(gram, seed, purpose))
    if isinstance(span, DirectionSpan):
        # Own parts, once turned, still have next to nothing in common where a block's are about as long.
        rows, own = span.rows.clone(), span.own.clone()
        _turn(rows, seed, purpose, own)
        squares = torch.linalg.vector_norm(rows, dim=1).square() + own
        return DirectionSpan(rows.mul_(squares.rsqrt()[:, None]), own / squares)
    if isinstance(span, RowSpan):
        return unit_rows(_turn(span.rows.clone(), seed, purpose))
    raise TypeError(f"documents of a {type(span).__name__} cannot be turned")


def _turn(rows: torch.Tensor, seed: int, purpose: str, squares: torch.Tensor | None = None) -> torch.Tensor:
    """Turn `rows` (N, any) in place, block by block; the same blocks and matrices each time.

    `squares` (N,), of parts that lie at right angles, become those of the sums that are made of them.
    """
    generator = seeded(seed, purpose)
    count = len(rows)
    order = torch.randperm(count, generator=generator)
    for block in torch.tensor_split(order, max(1, -(-count // BLOCK))):
        matrix = mean_keeping_rotation(len(block), generator).to(rows.device)
        places = block.to(rows.device)
        rows[places] = matrix @ rows[places]
        if squares is not None:
            squares[places] = matrix.square() @ squares[places]
    return rows


def mean_keeping_rotation(size: int, generator: torch.Generator) -> torch.Tensor:
    """A random orthogonal float32 matrix (size, size) whose rows sum to one, uniform among them."""
    if size < 2:
        return torch.eye(size)
    drawn, upper = torch.linalg.qr(torch.randn(size - 1, size - 1, generator=generator))
    matrix = torch.eye(size)
    matrix[1:, 1:] = drawn * torch.where(upper.diagonal() < 0, -1.0, 1.0)
    # Between two reflections that exchange the first axis with the direction of ones.
    axis = torch.full((size,), -(size**-0.5))
    axis[0] += 1.0
    axis /= torch.linalg.vector_norm(axis)
    matrix -= 2 * torch.outer(axis, axis @ matrix)
    return matrix - 2 * torch.outer(matrix @ axis, axis)
