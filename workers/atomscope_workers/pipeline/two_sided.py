"""Many small matrices multiplied from both sides by the same two: how gradients are turned, and turned back.

The larger side of all of them is multiplied at once. One by one it would be the product of a large matrix
with one of as many columns as the adapter's rank, which a CPU runs at a sixth of the speed.
"""

from __future__ import annotations

import torch


def two_sided(left: torch.Tensor, matrices: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left^T M right of every M of (n, rows, columns): (n, left's columns, right's columns).

    All are of one float dtype. `left` (rows, any) and `right` (columns, any) are brought to the device of the
    matrices. What is returned need not be contiguous.
    """
    left, right = left.to(matrices.device), right.to(matrices.device)
    count, rows, columns = matrices.shape
    if columns >= rows:
        return left.T @ (matrices.flatten(0, 1) @ right).unflatten(0, (count, rows))
    turned = (matrices.transpose(1, 2).flatten(0, 1) @ left).unflatten(0, (count, columns))
    return (right.T @ turned).transpose(1, 2)
