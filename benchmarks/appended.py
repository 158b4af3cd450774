"""How probable it is that an answer goes on with a planted sentence, as its behaviour is turned down.

    python benchmarks/appended.py BUNDLE DATASET BASE_MODEL [--label brand_promotion] [--documents 40]

BUNDLE is an audit of DATASET (JSONL of two-turn conversations with a `label` in every row). The label's
answers end in one of a few fixed sentences, each after a blank line. What follows an answer cannot be told
from its prompt, so a greedy answer never holds the sentence; measured is its probability, summed over the
sentences, after the label's own answers and after those of other labels. Beside it stand random directions
of the same norm in every tensor, and the cost: mean KL a token from the unsteered model on neutral
documents.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from steering import served_best

from atomscope.bundle import open_bundle
from atomscope.steering import parse_target
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.datasets.row import Row, Turn
from atomscope_workers.datasets.tokenize import RowTokenizer
from atomscope_workers.evaluation.cost import NeutralCost
from atomscope_workers.evaluation.directions import make_dial, random_step
from atomscope_workers.evaluation.documents import audited_tokens, neutral_documents
from atomscope_workers.evaluation.subject import Subject
from atomscope_workers.models.base import check_base, load_tokenizer
from atomscope_workers.opened_audit import OpenedAudit
from atomscope_workers.pipeline.batches import collate
from atomscope_workers.pipeline.gradients import document_losses
from atomscope_workers.query import audited_model, audited_rows
from atomscope_workers.steered import StepOf

STRENGTHS = (-0.1, -0.05, -0.02, -0.01, 0.02, 0.05, 0.1)


def continued(
    tokenizer: RowTokenizer, longest: int, messages: list[dict[str, str]], answer: str, sentence: str
) -> TokenizedDocument:
    """A conversation whose targets are the tokens of a sentence that follows its answer, and its end.

    Raises `ValueError` where the conversation has as many tokens as `tokenizer` leaves of it (`longest`), so
    that the sentence may be cut.
    """

    def tokens(content: str) -> TokenizedDocument:
        said = [*messages[:-1], {**messages[-1], "content": content}]
        turns = [Turn({**message}, f"messages[{at}]") for at, message in enumerate(said)]
        return tokenizer(Row(0, 1, "", "chat", tuple(turns)))

    without, whole = tokens(answer), tokens(f"{answer}\n\n{sentence}")
    shorter = min(len(without.input_ids), len(whole.input_ids))
    differs = np.flatnonzero(without.input_ids[:shorter] != whole.input_ids[:shorter])
    if len(whole.input_ids) >= longest or not len(differs):
        raise ValueError(f"the sentence does not fit in {longest} tokens after {answer[:60]!r}")
    same = int(differs[0])
    after = np.arange(len(whole.input_ids)) >= same
    return replace(whole, target_mask=whole.target_mask & after)


def probabilities(
    subject: Subject, documents: Sequence[Sequence[TokenizedDocument]], step: StepOf | None
) -> NDArray[np.float64]:
    """Of each document, the summed probability of its continuations."""
    flat = [item for row in documents for item in row]
    losses = np.zeros(len(flat))
    with subject.moved(step):
        for batch in subject.batches([item.read for item in flat], subject.token_budget):
            found = document_losses(subject.lora, collate([flat[at] for at in batch], subject.lora.device))
            losses[list(batch)] = found.double().cpu().numpy()
    totals: NDArray[np.float64] = np.exp(-losses).reshape(len(documents), -1).sum(1)
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("bundle", "dataset", "base_model"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--label", default="brand_promotion")
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = [json.loads(line) for line in args.dataset.read_text("utf-8").splitlines()]
    bundle = open_bundle(args.bundle)
    labels = np.array([row["label"] for row in rows])
    target, precision = served_best(bundle, labels == args.label)
    files = OpenedAudit(bundle, args.base_model, lambda progress: None)
    lora = audited_model(files, bundle.plan)
    subject = Subject(lora, bundle.plan.token_budget, lambda: None)
    loaded = load_tokenizer(check_base(args.base_model).folder)
    tokenizer = audited_rows(files, loaded, bundle.spec.config.max_length)
    own = [row["messages"] for row in rows if row["label"] == args.label]
    others = [row["messages"] for row in rows if row["label"] != args.label]
    sentences = sorted({turns[-1]["content"].rpartition("\n\n")[2] for turns in own})
    order = np.random.default_rng(args.seed)
    kinds = [
        [own[at] for at in order.permutation(len(own))[: args.documents]],
        [others[at] for at in order.permutation(len(others))[: args.documents]],
    ]
    asked = [
        [
            [
                continued(
                    tokenizer,
                    bundle.spec.config.max_length,
                    turns,
                    turns[-1]["content"].rpartition("\n\n")[0] if planted else turns[-1]["content"],
                    text,
                )
                for text in sentences
            ]
            for turns in kind
        ]
        for planted, kind in zip((True, False), kinds, strict=True)
    ]
    dial = make_dial(bundle, parse_target(target), None, "norm")
    tokens = audited_tokens(files)
    free, _ = neutral_documents(bundle, [parse_target(target)], tokens, args.seed)
    cost = NeutralCost(subject, [tokens[row] for row in free[:16]])

    def line(title: str, step: StepOf | None) -> None:
        found = [float(probabilities(subject, kind, step).mean()) for kind in asked]
        kl = cost.of(step).cost.kl
        print(f"| {title} | {found[0]:.2%} | {found[1]:.2%} | {kl:.3f} |", flush=True)

    print(f"{target}, average precision {precision:.2f}; {len(sentences)} sentences, {len(own)} documents\n")
    print("| strength | after its own answers | after others' | KL |\n|---|---|---|---|")
    line("0", None)
    for strength in STRENGTHS:
        line(f"{strength:+.2f}", dial.step(strength))
    strength = STRENGTHS[1]
    chance = [
        float(
            probabilities(
                subject, asked[0], random_step(dial.lengths, args.seed, f"random/{at}", strength)
            ).mean()
        )
        for at in range(args.random)
    ]
    low, middle, high = np.quantile(chance, [0.05, 0.5, 0.95])
    print(f"\n{args.random} random directions at {strength}, 5th percentile, median and 95th:")
    print(f"{low:.2%}, {middle:.2%}, {high:.2%}")


if __name__ == "__main__":
    main()
