"""Time of kronfluence's EKFAC fit of LoRA matrices over documents given as tokens.

    python benchmarks/peers/kronfluence_ekfac.py MODEL DOCUMENTS BATCH DTYPE THREADS OUT

Runs in an environment of its own (`install.sh`). MODEL is a PEFT folder that names its base's folder;
DOCUMENTS is JSONL of `input_ids` and `labels`; DTYPE, of the model, is float32 or bfloat16. Measured are its
covariances, eigendecompositions and lambda, with the true labels; loading is left out. Prints one JSON
object: seconds, documents, modules.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs
from peft import PeftConfig, PeftModel
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

Batch = dict[str, torch.Tensor]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class LoraTask(Task):
    """Summed cross-entropy of the targets, in the LoRA matrices alone."""

    def __init__(self, modules: list[str]) -> None:
        self._modules = modules

    def compute_train_loss(self, batch: Batch, model: nn.Module, sample: bool = False) -> torch.Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        targets = batch["labels"][:, 1:].flatten()
        return cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, reduction="sum")

    def compute_measurement(self, batch: Batch, model: nn.Module) -> torch.Tensor:
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        return self._modules

    def get_attention_mask(self, batch: Batch) -> torch.Tensor:
        return batch["attention_mask"]


def collate(rows: list[dict[str, Any]]) -> Batch:
    width = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows])

    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", -100),
        "attention_mask": padded("attention_mask", 0),
    }


def main() -> None:
    folder, documents, batch, dtype, threads, out = sys.argv[1:]
    torch.set_num_threads(int(threads))
    rows = [json.loads(line) for line in Path(documents).read_text().splitlines()]
    rows.sort(key=lambda row: -len(row["input_ids"]))  # little padding
    base = AutoModelForCausalLM.from_pretrained(
        PeftConfig.from_pretrained(folder).base_model_name_or_path, dtype=DTYPES[dtype]
    )
    model = PeftModel.from_pretrained(base, folder, is_trainable=True, autocast_adapter_dtype=False)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (".lora_A." in name or ".lora_B." in name)
    ]
    task = LoraTask(names)
    model = prepare_model(model, task)
    analyzer = Analyzer("ekfac", model, task, cpu=True, output_dir=out, disable_tqdm=True)
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=collate))
    start = time.perf_counter()
    analyzer.fit_all_factors(
        "ekfac",
        rows,  # type: ignore[arg-type]  (any indexable of rows)
        per_device_batch_size=int(batch),
        factor_args=FactorArguments(strategy="ekfac", use_empirical_fisher=True),
    )
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "documents": len(rows), "modules": len(names)}))


if __name__ == "__main__":
    main()
