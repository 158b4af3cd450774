"""Whether an atom parts the documents into two groups, or is a direction in which they merely vary.

What counts is how strongly an atom pulls each document: its inner product with the mean of the atom's
documents, a document's own part in that mean left out. *Separation* is the log-likelihood, in nats, by which
two Gaussian groups describe these pulls better than one skewed group does: a Gaussian behind the power
transformation of Yeo and Johnson (2000) that fits best. A cloud that is skewed or heavy on one side gains
next to nothing; two groups gain in proportion to the documents and to the gap between them. A flat cloud, of
shorter tails than a Gaussian's, counts as two groups that touch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import PowerTransformer

from atomscope_workers.pipeline.span import Span

MOST_DOCUMENTS = 5000
"""Documents that the groups are fitted to; of more, an even sample."""

_FEWEST = 4
"""Documents below which no groups are told apart."""
_SHARES = (0.01, 0.03, 0.1, 0.3, 0.5)
"""Shares of the documents at which the second group is begun; the best end counts."""
_TRIED, _ROUNDS = 8, 40
"""Rounds from every start, and then from the best of them."""
_LEAST_VARIANCE = 0.02
"""Of a group, as a share of the whole's: a group of one document has none."""
FLAT = 1e-9
"""Spread of the pulls, relative to their size, below which every document is pulled alike."""

Table = NDArray[np.float64]


@dataclass(frozen=True)
class Parting:
    """How columns of pulls (N, K) part the documents."""

    nats: Table
    """(K,), to a hundredth: by how much two groups describe the pulls better than one."""
    upper: NDArray[np.bool_]
    """(N, K): documents that are likelier of the group that is pulled more; none where `nats` is 0."""


def pulls(span: Span, table: Table) -> Table:
    """Pull (N, K) of every column's mean document on every document, from weights (N, K).

    Weights below zero count as none.
    """
    weights = torch.from_numpy(table.clip(min=0)).float().to(span.device)
    means = span.combine(weights.T.contiguous())
    # Documents are of unit norm, so a document's part in its own pull is its weight.
    return (span.products(means) - weights).double().cpu().numpy()


def separation(pulled: Table) -> Table:
    """Nats (K,), to a hundredth, by which two groups describe each column of pulls (N, K) better than one."""
    return parting(pulled).nats


def parting(pulled: Table) -> Parting:
    """How each column of pulls (N, K) parts the documents."""
    values = pulled[np.linspace(0, len(pulled) - 1, min(len(pulled), MOST_DOCUMENTS)).astype(np.int64)]
    nats, upper = np.zeros(pulled.shape[1]), np.zeros(pulled.shape, dtype=np.bool_)
    if len(values) < _FEWEST:
        return Parting(nats, upper)
    centre, spread = values.mean(0), values.std(0)
    varied = np.flatnonzero(spread > FLAT * np.abs(values).max(0, initial=1e-300))
    if not len(varied):
        return Parting(nats, upper)
    standard = (values[:, varied] - centre[varied]) / spread[varied]
    groups, gain = _two_groups(standard)
    # Pulls are float32 sums, whose last digits depend on how many threads add them up.
    nats[varied] = (gain - _gain_of_skewness(standard)).clip(min=0).round(2)
    whole = (pulled[:, varied] - centre[varied]) / spread[varied]
    # A wide lower group reaches beyond a narrow upper one on both sides.
    inside = (groups.membership(whole) > 0.5) & (whole > np.median(standard, axis=0))
    upper[:, varied] = inside & (nats[varied] > 0)
    return Parting(nats, upper)


def _gain_of_skewness(values: Table) -> Table:
    """Nats (K,) by which one Gaussian fits standard columns (N, K) better behind the best transformation."""
    powers = PowerTransformer(method="yeo-johnson", standardize=False).fit(values)
    changed: Table = np.asarray(powers.transform(values))
    # The transformation's own density: the logarithm of its slope.
    slopes = (powers.lambdas_ - 1) * (np.sign(values) * np.log1p(np.abs(values))).sum(0)
    return (slopes - 0.5 * len(values) * np.log(changed.var(0).clip(min=1e-300))).clip(min=0)


@dataclass(frozen=True)
class _Groups:
    """Two Gaussians for each of K columns; every field is of shape (K,)."""

    share: Table
    """Of the second."""
    mean: tuple[Table, Table]
    variance: tuple[Table, Table]

    def log_densities(self, values: Table) -> tuple[Table, Table]:
        """Of both groups at values (N, K), shares included, constants left out: the second's, the first's."""
        second = np.log(self.share) + _log_density(values, self.mean[1], self.variance[1])
        first = np.log1p(-self.share) + _log_density(values, self.mean[0], self.variance[0])
        return second, first

    def membership(self, values: Table) -> Table:
        """Probability (N, K) of the second group."""
        second, first = self.log_densities(values)
        return np.exp(second - np.logaddexp(second, first))

    def of(self, columns: NDArray[np.bool_], other: _Groups) -> _Groups:
        """These, and those of another at some columns."""

        def choose(mine: Table, its: Table) -> Table:
            return np.where(columns, its, mine)

        return _Groups(
            choose(self.share, other.share),
            (choose(self.mean[0], other.mean[0]), choose(self.mean[1], other.mean[1])),
            (choose(self.variance[0], other.variance[0]), choose(self.variance[1], other.variance[1])),
        )


def _two_groups(values: Table) -> tuple[_Groups, Table]:
    """The two groups that fit standard columns (N, K) best, and by how many nats (K,) better than one.

    By expectation and maximisation from several starts.
    """
    best: _Groups | None = None
    highest = np.full(values.shape[1], -np.inf)
    for share in _SHARES:
        groups, total = _improved(values, _fitted(values, _start(values, share)), _TRIED)
        best = groups if best is None else best.of(total > highest, groups)
        highest = np.maximum(highest, total)
    if best is None:
        raise ValueError("there is no share to start from")
    groups, total = _improved(values, best, _ROUNDS)
    return groups, (total + 0.5 * np.square(values).sum(0)).clip(min=0)


def _start(values: Table, share: float) -> Table:
    """The highest `share` of every column almost wholly in the second group."""
    return np.where(values >= np.quantile(values, 1 - share, axis=0), 0.99, 0.01)


def _improved(values: Table, groups: _Groups, rounds: int) -> tuple[_Groups, Table]:
    """The groups after some rounds; the log-likelihood (K,) before the last."""
    total = np.zeros(values.shape[1])
    for _ in range(rounds):
        second, first = groups.log_densities(values)
        together = np.logaddexp(second, first)
        total = together.sum(0)
        groups = _fitted(values, np.exp(second - together).clip(1e-9, 1 - 1e-9))
    return groups, total


def _fitted(values: Table, second: Table) -> _Groups:
    """The groups that memberships (N, K) of the second describe."""
    (mean0, variance0), (mean1, variance1) = (_moments(values, 1 - second), _moments(values, second))
    return _Groups(second.mean(0), (mean0, mean1), (variance0, variance1))


def _moments(values: Table, weight: Table) -> tuple[Table, Table]:
    """Mean and variance (K,) of values (N, K) under weights (N, K)."""
    size = weight.sum(0)
    mean = (weight * values).sum(0) / size
    return mean, np.maximum((weight * np.square(values - mean)).sum(0) / size, _LEAST_VARIANCE)


def _log_density(values: Table, mean: Table, variance: Table) -> Table:
    """Log-density (N, K), without the constant, of a Gaussian."""
    return -0.5 * (np.log(variance) + np.square(values - mean) / variance)
