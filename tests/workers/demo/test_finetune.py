"""The demo's fine-tune, on a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.nn.functional import cross_entropy

from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.demo import finetune as module
from atomscope_workers.demo.documents import generate, write_documents
from atomscope_workers.demo.finetune import FinetuneSettings, finetune
from atomscope_workers.models.adapter import check_adapter
from atomscope_workers.models.base import check_base, load_base
from atomscope_workers.models.load import check_fit
from atomscope_workers.models.lora import LoraModel

SETTINGS = FinetuneSettings(rank=4, epochs=2, batch_documents=4, learning_rate=2e-2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(generate(per_behaviour=6), tmp_path_factory.mktemp("demo") / "train.jsonl")


def test_it_learns_and_writes_an_adapter_that_fits_its_base(
    tiny_llama: Path, dataset: Path, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    result = finetune(
        tiny_llama,
        dataset,
        tmp_path / "adapter",
        SETTINGS,
        base_name="tiny",
        on_step=lambda step, steps, loss: told.append((step, steps)),
    )
    assert result.documents == 36
    assert result.steps == 18
    assert told == [(step, 18) for step in range(1, 19)]
    assert result.last_loss < result.first_loss
    check_fit(check_base(tiny_llama), check_adapter(tmp_path / "adapter"))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"


def test_one_seed_gives_the_same_adapter(tiny_llama: Path, dataset: Path, tmp_path: Path) -> None:
    short = FinetuneSettings(rank=2, batch_documents=12)
    adapters = []
    for name in ("first", "second"):
        finetune(tiny_llama, dataset, tmp_path / name, short, base_name="tiny")
        adapters.append(load_file(tmp_path / name / "adapter_model.safetensors"))
    first, second = adapters
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize("at_once", [32, 2048])
def test_a_step_of_several_passes_has_the_loss_and_the_gradient_of_documents_alone(
    tiny_llama: Path, dataset: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the token-weighted mean of each document's own loss, within 1e-5; one document has no target."""
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", at_once)
    base = load_base(check_base(tiny_llama), dtype=torch.float32, device=torch.device("cpu"))
    weight = base.model.layers[0].self_attn.q_proj.weight
    weight.requires_grad_(True)
    documents = module._tokenize(tiny_llama, dataset, 256, None)[:5]
    without = TokenizedDocument(99, documents[0].input_ids, np.zeros_like(documents[0].target_mask))
    lora = LoraModel(base, base, parameters=(), device=base.device, dtype=base.dtype)
    mean = module._backward(lora, [*documents, without])
    found, weight.grad = weight.grad, None
    losses, count = [], 0
    for item in documents:
        ids = torch.from_numpy(item.input_ids).long()
        mask = torch.from_numpy(item.target_mask)[1:]
        logits = base(input_ids=ids[None]).logits[0, :-1]
        losses.append(cross_entropy(logits[mask], ids[1:][mask], reduction="sum"))
        count += int(mask.sum())
    expected = torch.stack(losses).sum() / count
    expected.backward()
    assert mean == pytest.approx(expected.item(), rel=1e-5)
    assert (found - weight.grad).norm() <= 1e-5 * weight.grad.norm()


def test_a_malformed_row_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"messages": "hello"}\n')
    with pytest.raises(ValueError, match="line 1"):
        finetune(tiny_llama, path, tmp_path / "adapter", SETTINGS, base_name="tiny")
