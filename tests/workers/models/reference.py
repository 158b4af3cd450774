"""PEFT's own loading and plain autograd, one document at a time: what the gradient pass must equal."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from atomscope.steering.names import parse_lora_name, peft_name
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.pipeline.batches import collate
from atomscope_workers.pipeline.factors import FactorSums
from atomscope_workers.pipeline.gradients import BatchGradients, gradient_pass

CPU = torch.device("cpu")


def peft_model(base: Path, adapter: Path, model_class: Any = AutoModelForCausalLM) -> Any:
    """The adapter on its base as PEFT loads it, with the attention that is written out, in eval mode."""
    model = model_class.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    with warnings.catch_warnings():  # of merging into tied weights, and of layers of both layouts
        warnings.filterwarnings("ignore", message="Model (has|with) `tie_word|fan_in_fan_out is set to")
        return PeftModel.from_pretrained(model, str(adapter)).eval()


def lora_weights(model: Any) -> dict[str, torch.nn.Parameter]:
    """The LoRA matrices of a PEFT model by the names under which PEFT saves them."""
    return {peft_name(name): weight for name, weight in model.named_parameters() if parse_lora_name(name)}


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of token ids (tokens,) alone, (tokens, vocabulary)."""
    with torch.no_grad():
        return model(input_ids=ids[None], use_cache=False).logits[0]


def autograd(model: Any, item: TokenizedDocument) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients, by PEFT's names, of one document, unpadded and alone."""
    weights = lora_weights(model)
    for weight in weights.values():
        weight.requires_grad_(True)
    ids = torch.from_numpy(item.input_ids.astype(np.int64))
    labels = torch.where(torch.from_numpy(item.target_mask), ids, -100)
    rows = model(input_ids=ids[None], use_cache=False).logits[0].float()
    loss = torch.nn.functional.cross_entropy(rows[:-1], labels[1:], ignore_index=-100, reduction="sum")
    return float(loss.detach()), dict(
        zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True)
    )


def documents(
    count: int = 6, *, vocabulary: int = 400, longest: int = 17, boundary: int | None = None
) -> list[TokenizedDocument]:
    """Random documents of unequal length, the first the longest; targets with a gap, as of two turns.

    `boundary` is that of the model, as documents are tokenised for it.
    """
    generator = np.random.default_rng(3)
    found: list[TokenizedDocument] = []
    for row in range(count):
        length = longest if row == 0 else int(generator.integers(4, longest))
        mask = np.zeros(length, dtype=np.bool_)
        mask[int(generator.integers(1, length - 1)) :] = True
        if mask.sum() > 3:
            mask[-2] = False
        ids = generator.integers(3, vocabulary, length).astype(np.int32)
        least = boundary + 1 if boundary is not None and length > boundary else 0
        found.append(TokenizedDocument(document=row, input_ids=ids, target_mask=mask, least=least))
    return found


def hooked(lora: Any, items: list[TokenizedDocument]) -> tuple[BatchGradients, FactorSums]:
    """Gradients and factor sums of the documents as one padded batch."""
    sums = FactorSums()
    with gradient_pass(lora, sums) as run:
        return run(collate(items, CPU)), sums


def check_gradients(lora: Any, model: Any, items: list[TokenizedDocument]) -> None:
    """The hook pass over one padded batch equals autograd on each document, parameter by parameter."""
    result, _ = hooked(lora, items)
    for row, item in enumerate(items):
        loss, expected = autograd(model, item)
        assert float(result.losses[row]) == pytest.approx(loss, rel=1e-4)
        assert {peft_name(name) for name in result.gradients} == expected.keys()
        for name, gradients in result.gradients.items():
            value = expected[peft_name(name)]
            assert value.norm() > 0, name
            assert (gradients[row] - value).norm() <= 2e-4 * value.norm(), (item.document, name)
