"""Sparse codes of given atoms: min over c of 1/2 |x - c D|^2 + alpha |c|_1 (eq. 2), many documents at once.

`fista` steps in all coordinates (Beck and Teboulle 2009), restarted where the objective would rise
(O'Donoghue and Candes 2015). `sparse_codes` gives each document a working set of atoms: those that it uses,
and those that pull hardest on what these leave of it. A document has some ten codes of a thousand, and its
steps are taken in these alone; the next call chooses the sets anew. `settled_codes` does so until nothing
moves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from atomscope.types.spec import Codes

LEAST = 32
"""Atoms of a working set; twice, four times as many for a document that uses more."""
SPARE = 16
"""Atoms of a working set that its document does not use, at the least."""
SHARE = 0.5
"""Of all atoms: a document whose working set would be larger is solved in all coordinates."""
FINAL = 400
"""Most steps for codes that are to settle."""
SETTLING = 50
"""Of them, between two choices of working sets."""
BLOCK_BYTES = 32 * 2**20
"""Most bytes of the inner products of working sets that are held at once."""


def fista(
    products: torch.Tensor,
    inner: torch.Tensor,
    start: torch.Tensor,
    alpha: float,
    codes: Codes,
    steps: int,
    tolerance: float = 0.0,
) -> torch.Tensor:
    """Codes (N, K) of the lasso with `products` X D^T (N, K) and `inner` D D^T (K, K), from `start`.

    Ends early when no code moves by more than `tolerance`.
    """
    return _descent(
        lambda y: y @ inner - products, start, _largest_eigenvalue(inner), alpha, codes, steps, tolerance
    )


def sparse_codes(
    products: torch.Tensor,
    inner: torch.Tensor,
    start: torch.Tensor,
    alpha: float,
    codes: Codes,
    steps: int,
) -> torch.Tensor:
    """Codes (N, K) after some steps from `start` in each document's working set; others stay zero."""
    if SHARE * len(inner) < LEAST:
        return fista(products, inner, start, alpha, codes, steps)
    used = start != 0
    sizes = LEAST * 2 ** ((used.sum(1) + SPARE) / LEAST).log2().ceil().clamp(min=0).long()
    pull = products - start @ inner
    pull = (pull if codes == "nonnegative" else pull.abs()).masked_fill_(used, torch.inf)
    largest = _largest_eigenvalue(inner)
    found = torch.zeros_like(start)
    for size in sizes.unique().tolist():
        alike = (sizes == size).nonzero()[:, 0]
        if size > SHARE * len(inner):
            found[alike] = fista(products[alike], inner, start[alike], alpha, codes, steps)
            continue
        for documents in alike.split(max(1, BLOCK_BYTES // (4 * size * size))):
            own = pull[documents].topk(size, sorted=False).indices
            between = inner[own[:, :, None], own[:, None, :]]
            target, before = products[documents].gather(1, own), start[documents].gather(1, own)
            # No eigenvalue is above the largest of all atoms', nor above a largest row sum (Gershgorin).
            lipschitz = between.abs().sum(2).amax(1, keepdim=True).clamp(max=largest)
            gradient = partial(_own_gradient, between, target)
            solved = _descent(gradient, before, lipschitz, alpha, codes, steps)
            found[documents] = found[documents].scatter(1, own, solved)
    return found


def settled_codes(
    products: torch.Tensor,
    inner: torch.Tensor,
    start: torch.Tensor,
    alpha: float,
    codes: Codes,
    tolerance: float = 1e-6,
) -> torch.Tensor:
    """Codes (N, K) that no longer move by more than `tolerance`, or as far as `FINAL` steps come."""
    if SHARE * len(inner) < LEAST:
        return fista(products, inner, start, alpha, codes, FINAL, tolerance)
    found = start.clone()
    left = torch.arange(len(found), device=found.device)
    for _ in range(FINAL // SETTLING):
        following = sparse_codes(products[left], inner, found[left], alpha, codes, SETTLING)
        moving = (following - found[left]).abs().amax(1) > tolerance
        found[left] = following
        left = left[moving]
        if not len(left):
            break
    return found


def _own_gradient(inner: torch.Tensor, products: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of each document (n, M), with the inner products (n, M, M) of its own atoms."""
    return torch.bmm(inner, y[:, :, None])[:, :, 0] - products


def _descent(
    gradient: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    lipschitz: torch.Tensor | float,
    alpha: float,
    codes: Codes,
    steps: int,
    tolerance: float = 0.0,
) -> torch.Tensor:
    """FISTA from `start` (n, M), with a bound of the curvature for all, or of each document's own (n, 1).

    Documents that share a bound share momentum and restarts, the others have their own. Ends early when no
    code moves by more than `tolerance`.
    """
    x, y = start, start
    shared = (0, 1) if isinstance(lipschitz, float) else (1,)
    t = start.new_ones((1 if isinstance(lipschitz, float) else len(start), 1))
    for _ in range(steps):
        following = _shrunk(y - gradient(y) / lipschitz, alpha / lipschitz, codes)
        step = following - x
        uphill = ((y - following) * step).sum(shared, keepdim=True) > 0
        t = t.masked_fill(uphill, 1.0)
        t_next = (1 + (1 + 4 * t.square()).sqrt()) / 2
        y = following + ((t - 1) / t_next) * step
        x, t = following, t_next
        if tolerance and float(step.abs().max()) < tolerance:
            break
    return x


def _shrunk(moved: torch.Tensor, by: torch.Tensor | float, codes: Codes) -> torch.Tensor:
    """The proximal step of the penalty."""
    if codes == "nonnegative":
        return (moved - by).clamp_min_(0)
    return moved.sign() * (moved.abs() - by).clamp_min_(0)


def _largest_eigenvalue(matrix: torch.Tensor, steps: int = 30, margin: float = 1.05) -> float:
    """Of a positive semi-definite matrix (K, K), by power iteration from a fixed vector, a little above.

    The entries of the vector differ: a constant one is at right angles to what two opposed atoms share, and
    never finds it.
    """
    vector = torch.linspace(1.0, 2.0, len(matrix), dtype=matrix.dtype, device=matrix.device)
    value = 1.0
    for _ in range(steps):
        vector = matrix @ vector
        value = max(float(torch.linalg.vector_norm(vector)), 1e-12)
        vector = vector / value
    return margin * value
