"""The likeliest power is the one that scikit-learn finds, for skewed, heavy and two-sided columns alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import PowerTransformer

from atomscope_workers.pipeline.skewness import gain_of_skewness

DOCUMENTS = 500


def standard(values: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy((values - values.mean(0)) / values.std(0))


def as_sklearn_finds_it(values: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = PowerTransformer(method="yeo-johnson", standardize=False).fit(values)
    changed = np.asarray(powers.transform(values))
    slopes = (powers.lambdas_ - 1) * (np.sign(values) * np.log1p(np.abs(values))).sum(0)
    return slopes - 0.5 * len(values) * np.log(changed.var(0))


@pytest.mark.parametrize(
    "shape", ["normal", "skewed", "skewed the other way", "heavy", "one outlier", "two groups"]
)
def test_the_gain_is_that_of_the_power_scikit_learn_finds(shape: str) -> None:
    random = np.random.default_rng(0)
    normal = random.normal(size=(DOCUMENTS, 12))
    values = {
        "normal": normal,
        "skewed": random.exponential(size=normal.shape) ** 2,
        "skewed the other way": -(random.exponential(size=normal.shape) ** 2),
        "heavy": random.standard_t(2, size=normal.shape),
        "one outlier": normal + 1000 * (np.arange(DOCUMENTS)[:, None] == 7),
        "two groups": normal + 20 * (random.random(normal.shape) < 0.05),
    }[shape]
    found = gain_of_skewness(standard(values))
    np.testing.assert_allclose(found, as_sklearn_finds_it(standard(values).numpy()), atol=1e-3, rtol=1e-7)


def test_columns_do_not_matter_to_each_other() -> None:
    values = standard(np.random.default_rng(1).gamma(2, size=(DOCUMENTS, 5)))
    alone = [gain_of_skewness(values[:, [item]])[0] for item in range(5)]
    np.testing.assert_allclose(gain_of_skewness(values), alone, atol=1e-3)


def test_no_columns_give_no_gains() -> None:
    assert gain_of_skewness(torch.zeros(DOCUMENTS, 0)).tolist() == []
