"""Recomputed layers hold less between the forward and the backward pass; `test_offload` compares the bits."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from atomscope_workers.pipeline.batches import collate
from atomscope_workers.pipeline.gradients import gradient_pass
from atomscope_workers.pipeline.recompute import recomputed_layers
from tests.workers.pipeline.tiny import EVERY, random_documents, tiny_lora


class Held:
    """Bytes that autograd holds, and the most it ever did."""

    now = most = 0

    def pack(self, tensor: torch.Tensor) -> Packed:
        return Packed(self, tensor)


class Packed:
    def __init__(self, held: Held, tensor: torch.Tensor) -> None:
        self.held, self.tensor = held, tensor
        held.now += tensor.nbytes
        held.most = max(held.most, held.now)

    def __del__(self) -> None:
        self.held.now -= self.tensor.nbytes


def most_held(layers: int, *, recompute: bool) -> int:
    lora = tiny_lora(EVERY, layers=layers)
    batch = collate(random_documents(8), lora.device)
    held = Held()
    with (
        gradient_pass(lora, recompute=recompute) as run,
        saved_tensors_hooks(held.pack, lambda packed: packed.tensor),
    ):
        run(batch)
    assert held.now == 0
    return held.most


def test_a_layer_more_costs_its_input_and_not_its_activations() -> None:
    kept = most_held(12, recompute=False) - most_held(4, recompute=False)
    recomputed = most_held(12, recompute=True) - most_held(4, recompute=True)
    documents = random_documents(8)
    states = 4 * 24 * len(documents) * max(item.read for item in documents)
    assert recomputed == 8 * states
    assert kept > 15 * recomputed


def test_a_model_without_layers_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="Linear has no layers that could be recomputed"),
        recomputed_layers(torch.nn.Linear(2, 2), lambda: None),
    ):
        pass
