"""Sparse dictionary learning by scikit-learn's `MiniBatchDictionaryLearning` in float64, as in the paper.

Codes are found by LARS, in the fit and for the final codes: it follows the exact regularisation path, so it
needs no tolerance and does not stop short, as coordinate descent does in float32.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import MiniBatchDictionaryLearning

from atomscope_workers.pipeline.fit import Fit
from atomscope_workers.pipeline.span import Span

BATCH = 256


def learner(size: int, alpha: float, seed: int) -> MiniBatchDictionaryLearning:
    """The solver of K = `size` atoms, not yet fitted."""
    return MiniBatchDictionaryLearning(
        n_components=size,
        alpha=alpha,  # pyright: ignore[reportArgumentType]  (inferred from a default of 1)
        batch_size=BATCH,
        fit_algorithm="lars",
        transform_algorithm="lasso_lars",
        transform_alpha=alpha,
        random_state=seed,
    )


def learn_minibatch(span: Span, n_atoms: int, *, alpha: float, seed: int) -> Fit:
    """Fit K atoms with codes of either sign, on the CPU. An atom that no document uses may be zero."""
    unit: NDArray[np.float64] = span.coordinates().double().cpu().numpy()
    model = learner(n_atoms, alpha, seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(unit)
        atoms: NDArray[np.float64] = np.array(model.components_, dtype=np.float64)
        # The solver keeps rows within the unit ball; a used atom ends a hair inside it.
        lengths = np.linalg.norm(atoms, axis=1, keepdims=True)
        model.components_ = np.divide(atoms, lengths, out=np.zeros_like(atoms), where=lengths > 0)
        codes: NDArray[np.float64] = model.transform(unit)
    # It tells of no limit that it reached: every step was taken.
    most = int(model.max_iter) * math.ceil(len(unit) / BATCH)
    residual = unit - codes @ model.components_
    objective = 0.5 * np.square(residual).sum(1) + alpha * np.abs(codes).sum(1)
    found = torch.from_numpy(np.ascontiguousarray(model.components_, dtype=np.float32))
    return Fit(
        atoms=span.from_coordinates(found.to(span.device)),
        codes=torch.from_numpy(codes).to(span.device),
        alpha=alpha,
        objective=float(objective.mean()),
        rounds=int(model.n_iter_),
        converged=not caught and int(model.n_steps_) < most,
        reseeded=0,
        pieces=n_atoms,
        warnings=tuple(sorted({str(item.message).splitlines()[0] for item in caught})),
    )
