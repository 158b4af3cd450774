"""Cost and log-probabilities against plain passes over one document at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from atomscope.errors import InvalidInput
from atomscope_workers.evaluation.cost import NeutralCost, mean_log_probabilities
from atomscope_workers.evaluation.directions import random_step
from atomscope_workers.evaluation.subject import Subject
from atomscope_workers.models.load import load_lora_model
from atomscope_workers.models.lora import LoraModel
from atomscope_workers.steered import StepOf
from tests.workers.models.reference import CPU, documents, logits


@pytest.fixture
def lora(tiny_llama: Path, plain_adapter: Path) -> LoraModel:
    return load_lora_model(tiny_llama, plain_adapter, dtype=torch.float32, device=CPU)


def step(lora: LoraModel, scale: float = 0.3) -> StepOf:
    return random_step({item.name: 1.0 for item in lora.parameters}, 0, "test", scale)


@pytest.mark.parametrize("held", [0, 1 << 30], ids=["computed anew", "held"])
def test_cost_is_the_mean_divergence_and_perplexity_of_single_passes(lora: LoraModel, held: int) -> None:
    subject, items = Subject(lora, 40, lambda: None), documents(6)
    neutral = NeutralCost(subject, items, held)
    moved = neutral.of(step(lora))
    before = [torch.log_softmax(logits(lora.base, torch.from_numpy(i.input_ids).long()), -1) for i in items]
    with subject.moved(step(lora)):
        after = [
            torch.log_softmax(logits(lora.base, torch.from_numpy(i.input_ids).long()), -1) for i in items
        ]
    kl, loss, base_loss, tokens = np.zeros(6), np.zeros(6), 0.0, 0
    for row, item in enumerate(items):
        for place in np.flatnonzero(item.target_mask):
            p, q = before[row][place - 1].double(), after[row][place - 1].double()
            kl[row] += float((p.exp() * (p - q)).sum())
            loss[row] -= float(q[item.input_ids[place]])
            base_loss -= float(p[item.input_ids[place]])
            tokens += 1
    assert moved.kl == pytest.approx(kl, rel=1e-3)
    assert moved.loss == pytest.approx(loss, rel=1e-4)
    assert moved.cost.kl == pytest.approx(kl.sum() / tokens, rel=1e-3)
    assert moved.cost.perplexity == pytest.approx(np.exp(loss.sum() / tokens), rel=1e-4)
    assert neutral.baseline.cost.kl == 0
    assert neutral.baseline.cost.perplexity == pytest.approx(np.exp(base_loss / tokens), rel=1e-4)
    assert neutral.of(step(lora), 3).kl == pytest.approx(kl[:3], rel=1e-3)
    assert moved.mean_kl(3) == pytest.approx(kl[:3].sum() / moved.tokens[:3].sum(), rel=1e-3)
    likely = mean_log_probabilities(subject, items, step(lora))
    assert likely == pytest.approx(-loss / moved.tokens, rel=1e-4)


def test_a_step_that_leaves_no_finite_numbers_is_told_and_undone(lora: LoraModel) -> None:
    subject = Subject(lora, 40, lambda: None)
    neutral = NeutralCost(subject, documents(2))
    before = [item.linear.weight.clone() for item in lora.parameters]
    for scale, code in ((1e30, "not_finite"), (1e60, "strength_too_large")):
        with pytest.raises(InvalidInput) as caught:
            neutral.of(step(lora, scale))
        assert caught.value.code == code
    assert all(item.linear.weight.equal(own) for item, own in zip(lora.parameters, before, strict=True))
