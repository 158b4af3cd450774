"""Whether an atom parts the documents into two groups, or is a direction in which they merely vary.

What counts is how strongly an atom pulls each document: its inner product with the mean of the atom's
documents, a document's own part in that mean left out. *Separation* is the log-likelihood, in nats, by which
two Gaussian groups describe these pulls better than one skewed group does: a Gaussian behind the power
transformation of Yeo and Johnson (2000) that fits best. A cloud that is skewed or heavy on one side gains
next to nothing; two groups gain in proportion to the documents and to the gap between them. A flat cloud, of
shorter tails than a Gaussian's, counts as two groups that touch.
"""

from __future__ import annotations

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
_FLAT = 1e-9
"""Spread of the pulls, relative to their size, below which every document is pulled alike."""

Table = NDArray[np.float64]


def pulls(span: Span, table: Table) -> Table:
    """Pull (N, K) of every column's mean document on every document, from weights (N, K).

    Weights below zero count as none.
    """
    weights = torch.from_numpy(table.clip(min=0)).float()
    means = span.combine(weights.T.contiguous())
    # Documents are of unit norm, so a document's part in its own pull is its weight.
    return (span.products(means) - weights).double().cpu().numpy()


def separation(pulled: Table) -> Table:
    """Nats (K,), to a hundredth, by which two groups describe each column of pulls (N, K) better than one."""
    values = pulled[np.linspace(0, len(pulled) - 1, min(len(pulled), MOST_DOCUMENTS)).astype(np.int64)]
    found = np.zeros(values.shape[1])
    if len(values) < _FEWEST:
        return found
    spread = values.std(0)
    varied = np.flatnonzero(spread > _FLAT * np.abs(values).max(0, initial=1e-300))
    if not len(varied):
        return found
    standard = (values[:, varied] - values[:, varied].mean(0)) / spread[varied]
    found[varied] = (_gain_of_groups(standard) - _gain_of_skewness(standard)).clip(min=0)
    # Pulls are float32 sums, whose last digits depend on how many threads add them up.
    return found.round(2)


def _gain_of_skewness(values: Table) -> Table:
    """Nats (K,) by which one Gaussian fits standard columns (N, K) better behind the best transformation."""
    powers = PowerTransformer(method="yeo-johnson", standardize=False).fit(values)
    changed: Table = np.asarray(powers.transform(values))
    # The transformation's own density: the logarithm of its slope.
    slopes = (powers.lambdas_ - 1) * (np.sign(values) * np.log1p(np.abs(values))).sum(0)
    return (slopes - 0.5 * len(values) * np.log(changed.var(0).clip(min=1e-300))).clip(min=0)


def _gain_of_groups(values: Table) -> Table:
    """Nats (K,) by which two groups fit standard columns (N, K) better than one.

    By expectation and maximisation from several starts.
    """
    tried = [_improved(values, _start(values, share), _TRIED) for share in _SHARES]
    best = np.argmax([total for _, total in tried], axis=0)
    start = np.choose(best, [second for second, _ in tried])
    _, total = _improved(values, start, _ROUNDS)
    return (total + 0.5 * np.square(values).sum(0)).clip(min=0)


def _start(values: Table, share: float) -> Table:
    """The highest `share` of every column almost wholly in the second group."""
    return np.where(values >= np.quantile(values, 1 - share, axis=0), 0.99, 0.01)


def _improved(values: Table, second: Table, rounds: int) -> tuple[Table, Table]:
    """Membership (N, K) of the second group after some rounds; the log-likelihood (K,) before the last."""
    total = np.zeros(values.shape[1])
    for _ in range(rounds):
        size = second.mean(0)
        inside = np.log(size) + _log_density(values, second)
        outside = np.log1p(-size) + _log_density(values, 1 - second)
        together = np.logaddexp(inside, outside)
        total = together.sum(0)
        second = np.exp(inside - together).clip(1e-9, 1 - 1e-9)
    return second, total


def _log_density(values: Table, weight: Table) -> Table:
    """Log-density (N, K), without the constant, of the Gaussian that weights (N, K) describe."""
    size = weight.sum(0)
    mean = (weight * values).sum(0) / size
    spread = np.square(values - mean)
    variance = np.maximum((weight * spread).sum(0) / size, _LEAST_VARIANCE)
    return -0.5 * (np.log(variance) + spread / variance)
