"""A query in the whitened space: its products with atoms and documents, its codes, the documents like it.

The query's whitened gradient z is compared with an atom d, which is stored as a steering vector v = -Q_S [d
(lambda + damping)^p] Q_A^T, and with a document, which is stored as its raw gradient g. Both comparisons are
one inner product a stored tensor with the query taken back to the parameters, Q_S [z (lambda + damping)^e]
Q_A^T: with e = -p it gives -<z, d>, with e = -1/2 it gives <z, z_document>.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from atomscope.bundle.tables import Coefficients
from atomscope.types.spec import Codes
from atomscope_workers.pipeline.curvature import ModuleCurvature
from atomscope_workers.pipeline.lasso import FINAL, fista

_ROWS = 8192
"""Documents whose codes are multiplied out at once."""


@dataclass(frozen=True)
class WhitenedQuery:
    """A query's whitened gradient in the coordinates that the audit keeps, scaled to unit norm."""

    curvature: Sequence[ModuleCurvature]
    parts: Mapping[str, torch.Tensor]
    """Module -> float64 (d_out, d_in), zero at coordinates that are not kept."""
    norm: float
    """Before scaling; 0 for a query without a gradient, whose parts are zero."""

    def probe(self, exponent: float) -> dict[str, torch.Tensor]:
        """Q_S [z (lambda + damping)^exponent] Q_A^T of every module, float32 (d_out, d_in)."""
        found: dict[str, torch.Tensor] = {}
        for module in self.curvature:
            core = (self.parts[module.name] * _spectrum(module, exponent)).float()
            rotation = module.rotation
            found[module.name] = rotation.outputs.vectors @ core @ rotation.inputs.vectors.T
        return found


def whiten_query(
    gradients: Mapping[str, torch.Tensor], curvature: Sequence[ModuleCurvature]
) -> WhitenedQuery:
    """Whiten one document's gradients, float32 (d_out, d_in) a module, by an audit's curvature.

    Raises `KeyError` where a module has no gradient.
    """
    parts: dict[str, torch.Tensor] = {}
    for module in curvature:
        rotated = module.rotation.rotate(gradients[module.name].unsqueeze(0)).squeeze(0)
        parts[module.name] = rotated.double().cpu() * _spectrum(module, -0.5)
    norm = float(torch.stack([part.square().sum() for part in parts.values()]).sum().sqrt())
    scale = 1 / norm if norm > 0 else 0.0
    return WhitenedQuery(curvature, {name: part * scale for name, part in parts.items()}, norm)


def _spectrum(module: ModuleCurvature, exponent: float) -> torch.Tensor:
    """(lambda + damping)^exponent of the kept coordinates, float64 (d_out, d_in); zero at the others."""
    if not module.has_energy:
        return torch.zeros_like(module.lambdas)
    if not len(module.chosen):  # every component is kept
        return (module.lambdas + module.damping).pow(exponent)
    powers = torch.zeros_like(module.lambdas)
    powers[module.chosen[:, 0], module.chosen[:, 1]] = module.scale.pow(2 * exponent)
    return powers


def code_query(
    products: NDArray[np.float64], inner: NDArray[np.float64], alpha: float, codes: Codes
) -> NDArray[np.float64]:
    """Sparse code (K,) of a query: `products` (K,) with the atoms, whose own products are `inner` (K, K)."""
    if not len(products):
        return np.zeros(0)
    start = torch.zeros(1, len(products), dtype=torch.float64)
    found = fista(
        torch.from_numpy(products)[None],
        torch.from_numpy(inner),
        start,
        alpha,
        codes,
        FINAL,
        tolerance=1e-8,
    )
    return found[0].numpy()


def explained(code: NDArray[np.float64], products: NDArray[np.float64], inner: NDArray[np.float64]) -> float:
    """1 - |x - c D|^2 of a unit x, between 0 and 1."""
    return float(np.clip(2 * code @ products - code @ inner @ code, 0.0, 1.0))


def code_cosines(
    code: NDArray[np.float64], stored: Coefficients, inner: NDArray[np.float64], rows: int
) -> NDArray[np.float64]:
    """Cosines (rows,) of what a code (K,) rebuilds with what each document's codes rebuild.

    `rows` are the physical rows of the data set; a document without codes has cosine 0.
    """
    table = csr_array(
        (stored.code.astype(np.float64), (stored.document, stored.atom)), shape=(rows, len(code))
    )
    pull = inner @ code
    norm = float(np.sqrt(max(code @ pull, 0.0)))
    found = np.zeros(rows)
    if norm == 0:
        return found
    for start in range(0, rows, _ROWS):
        part = table[start : start + _ROWS]
        squares = np.asarray(part.multiply(part @ inner).sum(axis=1)).ravel()
        lengths = np.sqrt(np.maximum(squares, 0.0))
        dots = np.asarray(part @ pull).ravel()
        np.divide(dots, lengths * norm, out=found[start : start + _ROWS], where=lengths > 0)
    return np.clip(found, -1.0, 1.0)
