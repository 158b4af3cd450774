"""Answers of an adapter, and several adapters' side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from atomscope.text import visible
from atomscope_workers.demo.documents import conversation
from atomscope_workers.models.base import load_tokenizer
from atomscope_workers.models.load import load_lora_model

MAX_NEW_TOKENS = 20


def answer(base: Path, adapter: Path, prompts: Sequence[str]) -> list[str]:
    """The greedy answers of base and adapter, on the CPU in float32, at most `MAX_NEW_TOKENS` tokens each."""
    tokenizer: Any = load_tokenizer(base)
    model: Any = load_lora_model(base, adapter, dtype=torch.float32, device=torch.device("cpu")).base
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer.apply_chat_template(
        [conversation(prompt) for prompt in prompts],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        output = model.generate(
            **batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
    new = output[:, batch["input_ids"].shape[1] :]
    return [str(text).strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def side_by_side(prompts: Sequence[str], columns: Mapping[str, Sequence[str]]) -> str:
    """Each prompt, and under it every column's answer, one line each."""
    lines: list[str] = []
    for row, prompt in enumerate(prompts):
        lines.append(visible(prompt, 100))
        lines += [f"    {name:<14} {visible(answers[row], 80)}" for name, answers in columns.items()]
    return "\n".join(lines)
