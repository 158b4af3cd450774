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
from torch.nn.functional import softplus

from atomscope_workers.pipeline.skewness import gain_of_skewness
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
_LARGEST_LOG_ODDS = 40.0
"""Beyond which log(1 + exp(x)) is x to every digit."""
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
    standard = torch.from_numpy((values[:, varied] - centre[varied]) / spread[varied])
    groups, gain = _two_groups(standard)
    # Pulls are float32 sums, whose last digits depend on how many threads add them up.
    nats[varied] = (gain - gain_of_skewness(standard)).clamp(min=0).numpy().round(2)
    whole = torch.from_numpy((pulled[:, varied] - centre[varied]) / spread[varied])
    # A wide lower group reaches beyond a narrow upper one on both sides.
    inside = (groups.log_odds(whole) > 0) & (whole > torch.from_numpy(np.median(standard.numpy(), axis=0)))
    upper[:, varied] = inside.numpy() & (nats[varied] > 0)
    return Parting(nats, upper)


@dataclass(frozen=True)
class _Groups:
    """Two Gaussians for each of K columns; every field is float64 of shape (K,)."""

    share: torch.Tensor
    """Of the second."""
    mean: tuple[torch.Tensor, torch.Tensor]
    variance: tuple[torch.Tensor, torch.Tensor]

    def log_odds(self, values: torch.Tensor) -> torch.Tensor:
        """Logarithm of how much likelier of the second group than of the first values (N, K) are."""
        (constant1, slope1, curve1), (constant0, slope0, curve0) = self._parabola(1), self._parabola(0)
        # In place: this is what the fit spends its time on.
        found = values * (curve1 - curve0)
        return found.add_(slope1 - slope0).mul_(values).add_(constant1 - constant0)

    def log_likelihood(self, values: torch.Tensor) -> torch.Tensor:
        """Of columns (N, K), in nats (K,), the constant of a Gaussian left out."""
        constant, slope, curve = self._parabola(0)
        first = len(values) * constant + slope * values.sum(0) + curve * values.square().sum(0)
        return first + softplus(self.log_odds(values), threshold=_LARGEST_LOG_ODDS).sum(0)

    def _parabola(self, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Coefficients (K,) of 1, x and x^2 in the logarithm of a group's share times its density."""
        mean, variance = self.mean[group], self.variance[group]
        share = self.share if group else 1 - self.share
        constant = share.log() - 0.5 * (variance.log() + mean.square() / variance)
        return constant, mean / variance, -0.5 / variance

    def of(self, columns: torch.Tensor, other: _Groups) -> _Groups:
        """These, and those of another at some columns (K,)."""

        def choose(mine: torch.Tensor, its: torch.Tensor) -> torch.Tensor:
            return torch.where(columns, its, mine)

        return _Groups(
            choose(self.share, other.share),
            (choose(self.mean[0], other.mean[0]), choose(self.mean[1], other.mean[1])),
            (choose(self.variance[0], other.variance[0]), choose(self.variance[1], other.variance[1])),
        )


def _two_groups(values: torch.Tensor) -> tuple[_Groups, torch.Tensor]:
    """The two groups that fit standard columns (N, K) best, and by how many nats (K,) better than one.

    By expectation and maximisation from several starts.
    """
    fit = _Fit(values)
    best = fit.started(_SHARES[0])
    highest = best.log_likelihood(values)
    for share in _SHARES[1:]:
        groups = fit.started(share)
        total = groups.log_likelihood(values)
        best, highest = best.of(total > highest, groups), torch.maximum(highest, total)
    groups = fit.improved(best, _ROUNDS)
    one = -0.5 * values.square().sum(0)
    return groups, (groups.log_likelihood(values) - one).clamp(min=0)


class _Fit:
    """Expectation and maximisation on standard columns (N, K)."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values, self._squares = values, values.square()
        self._sums = values.sum(0), self._squares.sum(0)

    def started(self, share: float) -> _Groups:
        """The groups some rounds after the highest `share` of every column was almost wholly the second."""
        highest = torch.from_numpy(np.quantile(self._values.numpy(), 1 - share, axis=0))
        return self.improved(
            self._described(torch.where(self._values >= highest, 0.99, 0.01).double()), _TRIED
        )

    def improved(self, groups: _Groups, rounds: int) -> _Groups:
        for _ in range(rounds):
            second = groups.log_odds(self._values).sigmoid_()
            groups = self._described(second.clamp_(1e-9, 1 - 1e-9))
        return groups

    def _described(self, second: torch.Tensor) -> _Groups:
        """The groups that memberships (N, K) of the second describe; what is not its is the first's."""
        size = second.sum(0)
        total = (second * self._values).sum(0)
        squared = (second * self._squares).sum(0)
        count = len(self._values)
        mean1, variance1 = _moments(size, total, squared)
        mean0, variance0 = _moments(count - size, self._sums[0] - total, self._sums[1] - squared)
        return _Groups(size / count, (mean0, mean1), (variance0, variance1))


def _moments(
    size: torch.Tensor, total: torch.Tensor, squared: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (K,) from the sums of weights, of weighted values and of weighted squares."""
    mean = total / size
    return mean, (squared / size - mean.square()).clamp(min=_LEAST_VARIANCE)
