"""Rare behaviours: a planted label thinned to a small share of the data, the rest as it is.

    python benchmarks/rare.py BUNDLE DATASET --labels NAME [NAME ...] [--shares 0.01 0.005] [--seeds 5]

BUNDLE is an audit of DATASET (JSONL with a `label` in every row) with the default preconditioner. A thinned
set is a part of its documents, so its inner products are a part of its Gram matrix: the adapter and the
whitening are those of the whole set. Printed are, over the thinning seeds, the mean average precision of the
best atom and of the best behaviour, and where the best behaviour stands among all by tightness (0 is first).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from atomscope.bundle import layout
from atomscope.types.spec import AuditConfig
from atomscope_workers.pipeline.dictionary import dictionary_size
from atomscope_workers.pipeline.evidence import tightness
from atomscope_workers.pipeline.findings import find
from atomscope_workers.pipeline.separation import pulls
from atomscope_workers.pipeline.span import GramSpan, unit_gram
from atomscope_workers.stages.arrays import load_gram


def thinned(labels: NDArray[np.str_], label: str, share: float, seed: int) -> NDArray[np.int64]:
    """Positions kept: all of the other labels, and as many of this one as make `share` of the whole."""
    own, others = np.flatnonzero(labels == label), np.flatnonzero(labels != label)
    count = max(2, round(share * len(others) / (1 - share)))
    kept = np.random.default_rng(seed).choice(own, size=min(count, len(own)), replace=False)
    return np.sort(np.concatenate([others, kept]))


def best(table: NDArray[np.float64], wanted: NDArray[np.bool_]) -> tuple[float, int]:
    """Highest average precision of a column, and which column it is."""
    found = [average_precision_score(wanted, column) for column in table.T]
    return float(np.max(found)), int(np.argmax(found))


def measured(
    span: GramSpan, n_atoms: int, wanted: NDArray[np.bool_], seed: int
) -> tuple[float, float, float]:
    """Average precision of the best atom and the best behaviour, and that one's place, 0 to 1."""
    found = find(span, AuditConfig(n_atoms=n_atoms), seed)
    strength = found.behaviours
    tight = tightness(pulls(span, strength), strength)
    behaviour, place = best(strength, wanted)
    return best(found.atoms, wanted)[0], behaviour, float((tight > tight[place]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--labels", nargs="+", required=True)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.01, 0.005])
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.dataset.read_text(encoding="utf-8").splitlines()]
    documents, gram = load_gram(args.bundle / layout.GRAM)
    labels = np.array([rows[item]["label"] for item in documents.tolist()])
    print("| label | share | K | documents | best atom | least | best behaviour | its place |")
    print("|---|---|---|---|---|---|---|---|")
    for label in args.labels:
        for share in args.shares:
            for factor in (0.7, 1.0, 1.4):
                found: list[tuple[float, float, float]] = []
                count = size = 0
                for seed in range(args.seeds):
                    kept = thinned(labels, label, share, seed)
                    wanted = labels[kept] == label
                    count, size = int(wanted.sum()), round(factor * dictionary_size("auto", len(kept)))
                    part = torch.from_numpy(kept)
                    found.append(measured(unit_gram(gram[part][:, part]), size, wanted, seed))
                atom, behaviour, place = np.mean(found, axis=0)
                least = min(item[0] for item in found)
                print(
                    f"| {label} | {share:.1%} | {size} | {count} | {atom:.2f} | {least:.2f} "
                    f"| {behaviour:.2f} | {place:.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
