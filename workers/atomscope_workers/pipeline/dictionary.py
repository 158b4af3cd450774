"""Sparse dictionary of the whitened rows (eq. 2): min over D and codes of 1/2 |x - c D|^2 + alpha |c|_1.

scikit-learn's `MiniBatchDictionaryLearning` in float64. Codes are found by LARS, in the fit and for the
final codes: it follows the exact regularisation path, so it needs no tolerance and does not stop short, as
coordinate descent does in float32.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import MiniBatchDictionaryLearning

ACTIVE = 1e-6
"""A document is active on an atom when |code| exceeds this."""

BATCH = 256
FEWEST, MOST = 8, 500


@dataclass(frozen=True)
class Dictionary:
    """K atoms over N documents, signs resolved."""

    atoms: NDArray[np.float32]
    """(K, k_total): rows of unit norm; a row that nothing uses may be zero."""
    codes: NDArray[np.float64]
    """(N, K): zero for a document whose row is zero."""
    signs: NDArray[np.int64]
    """(K,): what the solver's row and codes were multiplied by, +1 or -1."""
    zero_rows: NDArray[np.int64]
    """Positions of the documents whose row is zero; they took no part."""
    facts: dict[str, Any]
    """How the fit went: `steps`, `epochs`, `objective`, `codes_per_document`, `solver_warnings`."""


def dictionary_size(n_atoms: int | Literal["auto"], documents: int) -> int:
    """K: as asked, or for `auto` a tenth of the documents, from 8 to 500; never more than the documents."""
    wanted = min(max(documents // 10, FEWEST), MOST) if n_atoms == "auto" else n_atoms
    return min(wanted, documents)


def fit_dictionary(
    rows: NDArray[np.float32], *, n_atoms: int | Literal["auto"], alpha: float, seed: int
) -> Dictionary:
    """Learn a dictionary of the rows (N, k_total) scaled to unit norm. One seed gives one result.

    Rows of norm zero are left out and their codes are zero; with no other row there are no atoms. An `alpha`
    at which every code is zero gives atoms that no document uses: `codes_per_document` is then 0.

    Raises `ValueError` when a row is not finite.
    """
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    if not np.isfinite(norms).all():
        raise ValueError(f"{int((~np.isfinite(norms)).sum())} whitened rows are not finite")
    used = np.flatnonzero(norms > 0)
    unit = rows[used].astype(np.float64) / norms[used, None]
    size = dictionary_size(n_atoms, len(used))
    codes = np.zeros((len(rows), size))
    if not size:
        atoms = np.zeros((0, rows.shape[1]), dtype=np.float32)
        return Dictionary(atoms, codes, np.zeros(0, dtype=np.int64), np.flatnonzero(norms == 0), _no_fit())
    raw, found, facts = _solve(unit, size, alpha, seed)
    signs = np.where(found.sum(0) < 0, -1, 1)
    codes[used] = found * signs
    # scikit-learn's array is in Fortran order, which safetensors would write as if it were in C order.
    atoms = np.ascontiguousarray(raw * signs[:, None], dtype=np.float32)
    return Dictionary(atoms, codes, signs.astype(np.int64), np.flatnonzero(norms == 0), facts)


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


def _solve(
    unit: NDArray[np.float64], size: int, alpha: float, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, Any]]:
    """Atoms (K, k_total) of unit norm or zero, codes (n, K), facts."""
    model = learner(size, alpha, seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(unit)
        atoms: NDArray[np.float64] = np.array(model.components_, dtype=np.float64)
        # The solver keeps rows within the unit ball; a used atom ends a hair inside it.
        lengths = np.linalg.norm(atoms, axis=1, keepdims=True)
        model.components_ = np.divide(atoms, lengths, out=np.zeros_like(atoms), where=lengths > 0)
        codes: NDArray[np.float64] = model.transform(unit)
    residual = unit - codes @ model.components_
    objective = 0.5 * np.square(residual).sum(1) + alpha * np.abs(codes).sum(1)
    facts: dict[str, Any] = {
        "steps": int(model.n_steps_),
        "epochs": int(model.n_iter_),
        "objective": float(objective.mean()),
        "codes_per_document": float((np.abs(codes) > ACTIVE).sum(1).mean()),
        "solver_warnings": sorted({str(item.message).splitlines()[0] for item in caught}),
    }
    return model.components_, codes, facts


def _no_fit() -> dict[str, Any]:
    return {"steps": 0, "epochs": 0, "objective": 0.0, "codes_per_document": 0.0, "solver_warnings": []}
