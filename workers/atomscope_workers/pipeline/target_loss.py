"""Cross-entropy of target tokens, and what it sends back to their logits, in one visit to each of these.

Autograd goes over the logits of every target six times and keeps three tensors as large as they are. A few
rows at a time their probabilities stay in a CPU's cache, and the gradient is what is left of them.
"""

from __future__ import annotations

from collections.abc import Generator

import torch

AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits worked on at once, in float32."""


def target_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each target in nats, float32 (n,), of logits (n, vocabulary) in any float dtype."""
    found = torch.empty(len(targets), device=logits.device)
    for rows, wanted, logarithms in _log_probabilities(logits, targets):
        found[rows] = -logarithms.gather(1, wanted).squeeze(1)
    return found


def target_losses_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`target_losses`, and the gradient of their sum in the logits, of their shape and dtype.

    It is p - 1 at the target and p elsewhere, computed in float32.
    """
    found, gradient = torch.empty(len(targets), device=logits.device), torch.empty_like(logits)
    for rows, wanted, logarithms in _log_probabilities(logits, targets):
        found[rows] = -logarithms.gather(1, wanted).squeeze(1)
        probabilities = logarithms.exp_()
        probabilities.scatter_add_(1, wanted, probabilities.new_full(wanted.shape, -1.0))
        gradient[rows] = probabilities
    return found, gradient


def _log_probabilities(
    logits: torch.Tensor, targets: torch.Tensor
) -> Generator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Some rows, their targets (rows, 1), and the logarithms of their probabilities, float32."""
    step = max(1, AT_ONCE[logits.device.type] // logits.shape[1])
    for start in range(0, len(targets), step):
        rows = slice(start, start + step)
        yield rows, targets[rows, None], torch.log_softmax(logits[rows].float(), -1)
