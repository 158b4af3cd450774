"""Losses of targets and their gradient are those of autograd, however many rows are worked on at once."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from atomscope_workers.pipeline import target_loss
from atomscope_workers.pipeline.target_loss import target_losses, target_losses_and_gradient

VOCABULARY = 31
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def logits_and_targets(dtype: torch.dtype, rows: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, VOCABULARY, generator=made).mul_(20).to(dtype)
    return logits, torch.randint(VOCABULARY, (rows,), generator=made)


@pytest.mark.parametrize("rows", [1, 3, 10, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_and_gradient_are_those_of_autograd(
    dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(target_loss.AT_ONCE, "cpu", rows * VOCABULARY)
    logits, targets = logits_and_targets(dtype)
    whole = logits.clone().requires_grad_()
    expected = cross_entropy(whole.float(), targets, reduction="none")
    (wanted,) = torch.autograd.grad(expected.sum(), whole)
    kept = logits.clone()
    losses, gradient = target_losses_and_gradient(logits, targets)
    assert losses.dtype == torch.float32
    assert gradient.dtype == dtype
    assert torch.allclose(losses, expected, rtol=1e-6, atol=1e-6)
    # Of one rounding to the dtype: probabilities are at most 1.
    assert torch.allclose(gradient.float(), wanted.float(), rtol=0, atol=float(torch.finfo(dtype).eps))
    assert torch.equal(target_losses(logits, targets), losses)
    assert torch.equal(logits, kept)


def test_a_row_wider_than_what_is_worked_on_at_once_is_worked_on_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits, targets = logits_and_targets(torch.float32)
    expected = target_losses(logits, targets)
    monkeypatch.setitem(target_loss.AT_ONCE, "cpu", 1)
    assert torch.allclose(target_losses(logits, targets), expected, rtol=1e-6)


def test_a_target_that_is_certain_or_hopeless_has_a_finite_loss_and_gradient() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [1e4, 0.0, -1e4]])
    losses, gradient = target_losses_and_gradient(logits, torch.tensor([0, 2]))
    assert losses.tolist() == [0.0, 2e4]
    assert gradient.tolist() == [[0.0, 0.0, 0.0], [1.0, 0.0, -1.0]]


def test_a_logit_that_is_not_a_number_makes_the_loss_of_its_row_alone_one() -> None:
    logits, targets = logits_and_targets(torch.float32, rows=3)
    logits[1, 0] = torch.nan
    losses, gradient = target_losses_and_gradient(logits, targets)
    assert losses.isnan().tolist() == [False, True, False]
    assert gradient.isnan().any(1).tolist() == [False, True, False]
