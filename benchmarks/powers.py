"""Powers of the curvature in a steering vector, at one cost: which moves its own documents most?

    python benchmarks/powers.py BUNDLE DATASET BASE_MODEL [--kl 0.1] [--only NAME ...]

BUNDLE is an audit of DATASET (JSONL of two-turn conversations with a `label` in every row). Of each behaviour
of `steering.py` the same target is taken; its vector, unprojected by (lambda + damping) to each power, is
turned up and down until the neutral documents cost `--kl` nats a token, within a tenth. Told is by how much
the mean log-probability per token of the label's documents changes, that of the target's strongest ones left
out, since the vector is made of them; and in brackets the strength that this took, in norms of the adapter.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import get_args

import numpy as np
from steering import DETECTORS, served_best

from atomscope.bundle import open_bundle
from atomscope.steering import parse_target
from atomscope.types.spec import VectorPower
from atomscope_workers.evaluation.cost import NeutralCost, mean_log_probabilities
from atomscope_workers.evaluation.directions import Dial, make_dial, matched_scale
from atomscope_workers.evaluation.documents import audited_tokens, neutral_documents, own_documents
from atomscope_workers.evaluation.subject import Subject
from atomscope_workers.opened_audit import OpenedAudit
from atomscope_workers.query import audited_model

FIRST = 0.1
"""Norms of the adapter that are tried first."""


def strength_at(neutral: NeutralCost, dial: Dial, sign: int, kl: float) -> float:
    """The strength of a sign that costs so many nats per token."""

    def cost(scale: float) -> float:
        return neutral.of(dial.step(sign * scale)).cost.kl

    return sign * matched_scale(cost, kl, (FIRST, cost(FIRST)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("bundle", "dataset", "base_model"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--kl", type=float, default=0.1)
    parser.add_argument("--documents", type=int, default=16, help="of the label, and neutral ones")
    parser.add_argument("--only", nargs="+", choices=sorted(DETECTORS), default=list(DETECTORS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.dataset.read_text(encoding="utf-8").splitlines()]
    labels = np.array([row["label"] for row in rows])
    bundle = open_bundle(args.bundle)
    files = OpenedAudit(bundle, args.base_model, lambda progress: None)
    tokens = {row: item for row, item in audited_tokens(files).items() if item.target_mask.any()}
    subject = Subject(audited_model(files, bundle.plan), bundle.plan.token_budget, lambda: None)
    powers = get_args(VectorPower)
    titles = [f"{power}, {side}" for power in powers for side in ("up", "down")]
    print(f"| behaviour | target | {' | '.join(titles)} |")
    print("|" + "---|" * (2 + len(titles)))
    for name in args.only:
        label, _ = DETECTORS[name]
        key, _ = served_best(bundle, labels == label)
        target = parse_target(key)
        strongest = set(own_documents(bundle, target)[: bundle.spec.config.top_documents])
        own = [row for row in np.flatnonzero(labels == label).tolist() if row in tokens]
        own = [row for row in own if row not in strongest] or own
        chosen = np.random.default_rng(args.seed).permutation(own)[: args.documents].tolist()
        documents = [tokens[row] for row in chosen]
        free, _ = neutral_documents(bundle, [target], tokens, args.seed)
        apart = [row for row in free if labels[row] != label]
        neutral = NeutralCost(subject, [tokens[row] for row in apart[: args.documents]])
        before = mean_log_probabilities(subject, documents, None).mean()
        cells: list[str] = []
        for power in powers:
            dial = make_dial(bundle, target, power, "norm")
            for sign in (1, -1):
                strength = strength_at(neutral, dial, sign, args.kl)
                after = mean_log_probabilities(subject, documents, dial.step(strength)).mean()
                cells.append(f"{after - before:+.2f} ({strength:+.2f})")
        print(f"| {name} | {key} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
