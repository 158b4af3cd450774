"""The pipeline a second time, from the inputs alone: float64, autograd by document, plain loops.

Nothing of the pipeline or its stages is used here, so that a mistake would have to be made twice.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Document:
    """One row, tokenised."""

    ids: list[int]
    targets: list[bool]
    text: str


@dataclass(frozen=True)
class Passes:
    """What the model says of every document, in row order."""

    losses: list[float]
    base_losses: list[float]
    gradients: dict[str, Array]
    """Parameter name -> (N, d_out, d_in)."""
    input_factors: dict[str, Array]
    """A: the mean of x x^T over the tokens read."""
    output_factors: dict[str, Array]
    """S: the mean of s s^T over the tokens read."""


def tokenise(base: Path, dataset: Path) -> list[Document]:
    """Ids by the template; targets are the last turn's, after its header, through its end-of-turn token."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    documents: list[Document] = []
    for line in dataset.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        header = tokenizer.apply_chat_template(
            messages[:-1], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert ids[: len(header)] == header
        last = max(place for place, token in enumerate(ids) if token == end)
        targets = [len(header) <= place <= last for place in range(len(ids))]
        documents.append(Document(list(ids), targets, "\n".join(turn["content"] for turn in messages)))
    return documents


def run_model(base: Path, adapter: Path, documents: Sequence[Document]) -> Passes:
    """Every document alone and unpadded, by autograd on the LoRA weights."""
    model: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64), adapter, is_trainable=True
    )
    model = model.double().eval()
    layers = {
        name.replace(".default", "") + ".weight": module
        for name, module in model.named_modules()
        if re.search(r"\.lora_[AB]\.default$", name)
    }
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    for name, module in layers.items():

        def keep(_: Any, arguments: Any, output: torch.Tensor, name: str = name) -> None:
            inputs[name] = arguments[0].detach()[0]

            def keep_gradient(gradient: torch.Tensor) -> None:
                outputs[name] = gradient.detach()[0]

            if output.requires_grad:
                output.register_hook(keep_gradient)

        module.register_forward_hook(keep)
    losses: list[float] = []
    base_losses: list[float] = []
    gradients: dict[str, list[Array]] = {name: [] for name in layers}
    sums: dict[str, list[Array]] = {
        name: [np.zeros((layer.in_features,) * 2), np.zeros((layer.out_features,) * 2)]
        for name, layer in layers.items()
    }
    tokens = 0
    for document in documents:
        with torch.no_grad(), model.disable_adapter():
            base_losses.append(float(_loss(model, document)))
        loss = _loss(model, document)
        losses.append(float(loss.detach()))
        found = torch.autograd.grad(loss, [layer.weight for layer in layers.values()])
        for name, gradient in zip(layers, found, strict=True):
            gradients[name].append(gradient.numpy())
        # Of the tokens that a prediction of a target depends on: those before the last one.
        read = max(place for place, target in enumerate(document.targets) if target)
        tokens += read
        for name in layers:
            for x in inputs[name].numpy()[:read]:
                sums[name][0] += np.outer(x, x)
            for s in outputs[name].numpy()[:read]:
                sums[name][1] += np.outer(s, s)
    return Passes(
        losses=losses,
        base_losses=base_losses,
        gradients={name: np.stack(found) for name, found in gradients.items()},
        input_factors={name: pair[0] / tokens for name, pair in sums.items()},
        output_factors={name: pair[1] / tokens for name, pair in sums.items()},
    )


def _loss(model: Any, document: Document) -> torch.Tensor:
    ids = torch.tensor([document.ids])
    logits = model(input_ids=ids, use_cache=False).logits[0]
    labels = torch.tensor(
        [token if target else -100 for token, target in zip(document.ids, document.targets, strict=True)]
    )
    return cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")


def mean_pairwise_cosine(gradients: Mapping[str, Array], members: Sequence[int]) -> float:
    """By two loops over the members."""
    flat = [np.concatenate([gradients[name][row].ravel() for name in sorted(gradients)]) for row in members]
    cosines: list[float] = []
    for first in range(len(flat)):
        for second in range(first):
            norms = float(np.linalg.norm(flat[first]) * np.linalg.norm(flat[second]))
            cosines.append(float(flat[first] @ flat[second]) / norms)
    return float(np.mean(cosines)) if cosines else 0.0


def contrast_keywords(texts: Sequence[str], actives: Sequence[Sequence[int]], most: int) -> list[list[str]]:
    """z-scores of log-odds under a prior of 10 documents, over documents that hold a word, one by one."""
    words = [set(re.findall(r"[a-z0-9]{2,40}", text.lower())) for text in texts]
    found: list[list[str]] = []
    for active in actives:
        group = active[:most]
        inactive = [row for row in range(len(texts)) if row not in active]
        rest = inactive if len(inactive) >= len(group) else [r for r in range(len(texts)) if r not in group]
        scores: dict[str, float] = {}
        for word in sorted(set().union(*words)):
            share = sum(word in held for held in words) / len(words)
            in_group = sum(word in words[row] for row in group)
            in_rest = sum(word in words[row] for row in rest)
            if in_group < 2 or share == 1 or not rest:
                continue
            with_word = (in_group + 10 * share, in_rest + 10 * share)
            without = (
                len(group) - in_group + 10 * (1 - share),
                len(rest) - in_rest + 10 * (1 - share),
            )
            odds = [math.log(a / b) for a, b in zip(with_word, without, strict=True)]
            scores[word] = (odds[0] - odds[1]) / math.sqrt(sum(1 / count for count in with_word + without))
        kept = [word for word in scores if scores[word] > 1]
        found.append(sorted(kept, key=lambda word: (-round(scores[word], 9), word))[:10])
    return found
