"""Rare behaviours: a planted label thinned to a small share of the data, the rest as it is.

    python benchmarks/rare.py BUNDLE DATASET --labels NAME [NAME ...] [--shares 0.01 0.005] [--seeds 5]
    python benchmarks/rare.py BUNDLE DATASET --labels NAME [NAME ...] --as-is

BUNDLE is an audit of DATASET (JSONL with a `label` in every row) with the default preconditioner. A thinned
set is a part of its documents, so its inner products are a part of its Gram matrix: the adapter and the
whitening are those of the whole set. `--as-is` leaves the set as it is, thinned and trained on by
`thinned.py`; its seeds are those of the fit. Printed are, over the seeds, the mean average precision of the
best atom and of the best behaviour, and where the best behaviour stands among all (0 is first): by score
without stability, which is not measured here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from atomscope.bundle import layout
from atomscope.types.atoms import Evidence
from atomscope.types.spec import AuditConfig
from atomscope_workers.pipeline.dictionary import dictionary_size, fit, piece_count, resolve_signs
from atomscope_workers.pipeline.evidence import prominence
from atomscope_workers.pipeline.findings import atom_strengths, group
from atomscope_workers.pipeline.hierarchy import hierarchy
from atomscope_workers.pipeline.merging import merge_pieces
from atomscope_workers.pipeline.ranking import scores
from atomscope_workers.pipeline.separation import pulls
from atomscope_workers.pipeline.span import GramSpan, unit_gram
from atomscope_workers.stages.arrays import load_gram

FACTORS = (0.7, 1.0, 1.4)
"""K as multiples of the default."""


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
    span: GramSpan, sizes: Sequence[int], wanted: NDArray[np.bool_], seed: int
) -> list[tuple[float, float, float]]:
    """For each K: average precision of the best atom and the best behaviour, and that one's place, 0 to 1.

    One over-complete fit serves every K: only the merging of its pieces depends on it.
    """
    config = AuditConfig()
    pieces = fit(span, piece_count(config, max(sizes), span.documents), config, seed)
    scored: list[tuple[float, float, float]] = []
    for size in sizes:
        codes = resolve_signs(merge_pieces(span, pieces, size), config.solver).codes
        found = group(span, codes, atom_strengths(span, codes, config), config)
        stands_out = prominence(pulls(span, found.behaviours), found.behaviours)
        tree = hierarchy(found.kept, found.grouping)
        groups = [found.kept[members].tolist() for members in found.grouping.groups]
        score = np.array(scores([Evidence(prominence=float(item)) for item in stands_out], groups, tree))
        behaviour, place = best(found.behaviours, wanted)
        scored.append((best(found.atoms, wanted)[0], behaviour, float((score > score[place]).mean())))
    return scored


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--labels", nargs="+", required=True)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.01, 0.005])
    parser.add_argument("--as-is", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.dataset.read_text(encoding="utf-8").splitlines()]
    documents, gram = load_gram(args.bundle / layout.GRAM)
    labels = np.array([rows[item]["label"] for item in documents.tolist()])
    print("| label | share | K | documents | best atom | least | best behaviour | its place |")
    print("|---|---|---|---|---|---|---|---|")
    for label in args.labels:
        for share in [float(np.mean(labels == label))] if args.as_is else args.shares:
            found: list[list[tuple[float, float, float]]] = []
            count, sizes = 0, [0]
            for seed in range(args.seeds):
                kept = np.arange(len(labels)) if args.as_is else thinned(labels, label, share, seed)
                wanted = labels[kept] == label
                count = int(wanted.sum())
                sizes = [round(factor * dictionary_size("auto", len(kept))) for factor in FACTORS]
                part = torch.from_numpy(kept)
                found.append(measured(unit_gram(gram[part][:, part]), sizes, wanted, seed))
            for place, size in enumerate(sizes):
                of_size = [item[place] for item in found]
                atom, behaviour, rank = np.mean(of_size, axis=0)
                print(
                    f"| {label} | {share:.1%} | {size} | {count} | {atom:.2f} "
                    f"| {min(item[0] for item in of_size):.2f} | {behaviour:.2f} | {rank:.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
