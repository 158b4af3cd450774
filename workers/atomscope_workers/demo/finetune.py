"""A small, plain LoRA fine-tune of a chat model on a CPU: what the demo audits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.datasets.reading import read_rows
from atomscope_workers.datasets.rows import BadRow
from atomscope_workers.datasets.tokenize import RowTokenizer
from atomscope_workers.models.base import check_base, load_base, load_tokenizer
from atomscope_workers.models.device import dtype_of_name
from atomscope_workers.models.lora import LoraModel
from atomscope_workers.models.positions import length_boundary
from atomscope_workers.pipeline.batches import collate
from atomscope_workers.pipeline.gradients import target_logits
from atomscope_workers.pipeline.plan import micro_batches
from atomscope_workers.pipeline.splitting import split_at_length

TOKENS_AT_ONCE = 2048
"""Tokens run at once, padding included; a step of more is made of several passes."""


@dataclass(frozen=True)
class FinetuneSettings:
    """Everything that decides the adapter, beside the base model and the documents."""

    rank: int = 8
    alpha: int = 16
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    epochs: int = 1
    batch_documents: int = 4
    learning_rate: float = 2e-3
    """Of AdamW; falls linearly to zero."""
    max_length: int = 256
    seed: int = 0
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """In which the base computes; the LoRA matrices and their optimizer are float32."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class FinetuneResult:
    """What the training did. Losses are mean cross-entropies per target token, in nats."""

    steps: int
    documents: int
    first_loss: float
    """Over the first tenth of the steps."""
    last_loss: float
    """Over the last tenth."""


def finetune(
    base_dir: Path,
    dataset: Path,
    out_dir: Path,
    settings: FinetuneSettings,
    *,
    base_name: str,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> FinetuneResult:
    """Train a LoRA on the assistant turns of `dataset` and write its PEFT folder to `out_dir`.

    One seed gives one adapter on one machine. `base_name` is what the adapter's configuration says of its
    base. `on_step` is told the step, the number of steps and the batch's loss. Raises `InvalidInput` for a
    base model that cannot be audited, `ValueError` for a malformed row.
    """
    torch.manual_seed(settings.seed)
    base = load_base(
        check_base(base_dir), dtype=dtype_of_name(settings.base_dtype), device=torch.device("cpu")
    )
    boundary = length_boundary(base.config)
    documents = _tokenize(base_dir, dataset, settings.max_length, boundary)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=list(settings.target_modules),
    )
    model: Any = get_peft_model(base, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    lora = LoraModel(model, base, parameters=(), device=base.device, dtype=base.dtype)
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
    batches = list(_batches(documents, settings))
    losses: list[float] = []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 - step / len(batches))
        losses.append(_backward(lora, batch))
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        on_step(step + 1, len(batches), losses[-1])
    model.peft_config["default"].base_model_name_or_path = base_name
    model.save_pretrained(out_dir, save_embedding_layers=False)
    tail = max(1, len(losses) // 10)
    return FinetuneResult(
        steps=len(batches),
        documents=len(documents),
        first_loss=sum(losses[:tail]) / tail,
        last_loss=sum(losses[-tail:]) / tail,
    )


def _tokenize(
    base_dir: Path, dataset: Path, max_length: int, boundary: int | None
) -> list[TokenizedDocument]:
    tokenize = RowTokenizer(load_tokenizer(base_dir), max_length, boundary=boundary)
    documents: list[TokenizedDocument] = []
    for row in read_rows(dataset, file=dataset.name, max_rows=100_000):
        if isinstance(row, BadRow):
            raise ValueError(f"{dataset.name}, line {row.line}: {row.problems[0].message}")
        documents.append(tokenize(row))
    return documents


def _batches(
    documents: list[TokenizedDocument], settings: FinetuneSettings
) -> Iterator[list[TokenizedDocument]]:
    """Batches in an order shuffled anew in every epoch."""
    random = Random(settings.seed)  # noqa: S311  (an order of training, nothing secret)
    for _ in range(settings.epochs):
        shuffled = random.sample(documents, len(documents))
        for start in range(0, len(shuffled), settings.batch_documents):
            yield shuffled[start : start + settings.batch_documents]


def _backward(lora: LoraModel, batch: list[TokenizedDocument]) -> float:
    """Add the gradient of the mean cross-entropy of the batch's target tokens to the weights'; the mean.

    Documents of like length are run together, so that little is computed for padding.
    """
    read = {row: item.read for row, item in enumerate(batch) if item.target_mask.any()}
    n_targets = sum(int(item.target_mask.sum()) for item in batch)
    mean = 0.0
    for rows in micro_batches(list(read), read, TOKENS_AT_ONCE, lora.device.type):
        together = collate([batch[row] for row in rows], lora.device)
        for _, part in split_at_length(together, length_boundary(lora.base.config)):
            logits = target_logits(lora, part).float()
            loss = nn.functional.cross_entropy(logits, part.targets, reduction="sum") / n_targets
            loss.backward()
            mean += loss.item()
    return mean
