"""Responses dealt out among prompts: what an audit says of the prompt must fall; form may stay.

    python benchmarks/shuffled.py --make DATASET OUT [--documents N]
    python benchmarks/shuffled.py BUNDLE DATASET SHUFFLED_BUNDLE SHUFFLED

DATASET is JSONL of two-turn conversations with a `label` in every row. `--make` writes two files to the
folder OUT, of the same documents: `paired.jsonl` as they are, and `shuffled.jsonl`, every prompt with the
response of another row, `label` that of the prompt and `response_label` that of the response. Both are
audited with one adapter. Printed of each audit: atoms that pass, their median tightness and stability, what
the adapter takes off the loss, the best one-to-one average precision of atoms for the labels of the prompts
and of the responses (labels drawn at random beside them), and how much of the prompts' words atoms share.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import average_precision_score

from atomscope.bundle import open_bundle

RATE = 0.05


def make(dataset: Path, out: Path, documents: int | None, seed: int) -> None:
    """Write `paired.jsonl` and `shuffled.jsonl`; an even share of every label where `documents` is given."""
    rows = [json.loads(line) for line in dataset.read_text(encoding="utf-8").splitlines()]
    random = np.random.default_rng(seed)
    if documents is not None:
        kept = np.sort(random.choice(len(rows), size=min(documents, len(rows)), replace=False))
        rows = [rows[item] for item in kept]
    deal = random.permutation(len(rows))
    out.mkdir(parents=True, exist_ok=True)
    with (out / "paired.jsonl").open("w") as paired, (out / "shuffled.jsonl").open("w") as shuffled:
        for row, place in zip(rows, deal.tolist(), strict=True):
            *prompt, _ = row["messages"]
            other = rows[place]
            told = {"messages": row["messages"], "label": row["label"], "response_label": row["label"]}
            paired.write(json.dumps(told) + "\n")
            dealt = {
                "messages": [*prompt, other["messages"][-1]],
                "label": row["label"],
                "response_label": other["label"],
            }
            shuffled.write(json.dumps(dealt) + "\n")


def one_to_one(codes: NDArray[np.float64], labels: NDArray[np.str_]) -> float:
    """Mean average precision of the labels, each served by an atom of its own."""
    names = sorted(set(labels.tolist()))
    found = np.array(
        [[average_precision_score(labels == name, column) for column in codes.T] for name in names]
    )
    return float(found[linear_sum_assignment(-found)].mean())


def line(title: str, bundle_path: Path, dataset: Path) -> str:
    rows = [json.loads(item) for item in dataset.read_text(encoding="utf-8").splitlines()]
    bundle = open_bundle(bundle_path)
    stored = bundle.coefficients
    codes = np.zeros((len(rows), int(stored.atom.max()) + 1))
    codes[stored.document, stored.atom] = stored.value
    atoms = bundle.report.atoms
    passing = [item for item in atoms if (item.evidence.q_value or 0.0) <= RATE]
    codes = codes[:, [item.index for item in passing]]
    prompts = np.array([row["label"] for row in rows])
    responses = np.array([row["response_label"] for row in rows])
    drawn = np.random.default_rng(0).permutation(prompts)
    drops = [item.evidence.loss_drop for item in passing if item.evidence.loss_drop is not None]
    cells = [
        f"{len(passing)} of {len(atoms)}",
        f"{np.median([item.evidence.tightness or 0.0 for item in passing]):.2f}",
        f"{np.median([item.evidence.stability or 0.0 for item in passing]):.2f}",
        f"{np.median(drops):.2f}",
        *(f"{one_to_one(codes, labels):.2f}" for labels in (prompts, responses, drawn)),
        f"{np.mean([len(item.prompt_keywords) for item in passing]):.1f}",
        f"{np.mean([len(item.response_keywords) for item in passing]):.1f}",
    ]
    return f"| {title} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--documents", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("paths", nargs="+", type=Path)
    args = parser.parse_args()
    if args.make:
        dataset, out = args.paths
        make(dataset, out, args.documents, args.seed)
        return
    bundle, dataset, other, shuffled = args.paths
    print(
        "| responses | pass | tightness | stability | loss drop | AP of prompts | of responses | of chance "
        "| prompt keywords | response keywords |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    print(line("as they are", bundle, dataset))
    print(line("dealt out", other, shuffled))


if __name__ == "__main__":
    main()
