"""What the demo audits: a base model, documents and an adapter, each made once and kept."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from atomscope_workers.demo.documents import DemoDocument, generate, write_documents
from atomscope_workers.demo.finetune import FinetuneResult, FinetuneSettings, finetune
from atomscope_workers.models.gguf import convert_gguf, smollm2_gguf

BASE_NAME = "SmolLM2-135M-Instruct"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """The inputs of the audit."""

    base: Path
    """Folder of the base model, bfloat16."""
    dataset: Path
    """Chat JSONL."""
    adapter: Path
    """PEFT folder."""
    documents: tuple[DemoDocument, ...]


def prepare(folder: Path, settings: FinetuneSettings, say: Say) -> Prepared:
    """Make or find the inputs under `folder`; an adapter is kept as long as all that decides it is the same.

    Raises `InvalidInput` (`missing_file`) where the demo's model is not installed.
    """
    base = convert_gguf(smollm2_gguf(), folder / "models")
    say(f"base model: {BASE_NAME}, 135 million parameters")
    documents = tuple(generate())
    dataset = write_documents(list(documents), folder / "train.jsonl")
    say(f"data set: {len(documents)} documents of six behaviours")
    adapter = folder / f"adapter-{_digest(base, dataset, settings)}"
    if (adapter / "adapter_model.safetensors").is_file():
        say("adapter: the one that was trained before (same documents, same settings)")
    else:
        _train(base, dataset, adapter, settings, say)
    return Prepared(base=base, dataset=dataset, adapter=adapter, documents=documents)


def _train(base: Path, dataset: Path, adapter: Path, settings: FinetuneSettings, say: Say) -> None:
    partial = adapter.with_name(f"{adapter.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)

    def on_step(step: int, steps: int, loss: float) -> None:
        if step % 10 == 0 or step == steps:
            say(f"fine-tuning: step {step} of {steps}, loss {loss:.2f}")

    result: FinetuneResult = finetune(base, dataset, partial, settings, base_name=BASE_NAME, on_step=on_step)
    partial.rename(adapter)
    say(f"adapter: loss {result.first_loss:.2f} at first, {result.last_loss:.2f} at last")


def _digest(base: Path, dataset: Path, settings: FinetuneSettings) -> str:
    """Of everything that decides the adapter; the folder of the base is named by its content."""
    told = json.dumps([base.name, hashlib.sha256(dataset.read_bytes()).hexdigest(), settings.as_dict()])
    return hashlib.sha256(told.encode()).hexdigest()[:16]
