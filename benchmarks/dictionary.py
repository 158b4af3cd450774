"""Time in which the dictionary learner reaches the objective at which scikit-learn's stops.

    python benchmarks/dictionary.py [--documents 5000] [--columns 6800] [--atoms 500] [--alpha 0.1]

Rows of unit norm: sparse sums of as many atoms as are fitted, half of their energy noise, so that their
cosines are about those of whitened gradients. scikit-learn runs as the preset `paper` runs it. Both
objectives are those of eq. 2 with codes of either sign, solved to the end for the finished dictionary. Ours
is fitted anew with 1, 2, 3... rounds until its objective is no higher; the time is that of the last fit,
whole: inner products, first atoms, rounds and final codes.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from atomscope_workers.pipeline.alternating import learn
from atomscope_workers.pipeline.minibatch import learn_minibatch
from atomscope_workers.pipeline.span import GramSpan, RowSpan, Span, unit_rows

ROUNDS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 30, 50, 100)
ACTIVE_ATOMS = 8


def rows_of(documents: int, columns: int, atoms: int, seed: int) -> RowSpan:
    random = np.random.default_rng(seed)
    dictionary = random.standard_normal((atoms, columns), dtype=np.float32)
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    codes = np.zeros((documents, atoms), dtype=np.float32)
    for row in codes:
        row[random.choice(atoms, size=ACTIVE_ATOMS, replace=False)] = random.gamma(2.0, size=ACTIVE_ATOMS)
    signal = codes @ dictionary
    noise = random.standard_normal(signal.shape, dtype=np.float32)
    noise *= np.linalg.norm(signal, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    return unit_rows(torch.from_numpy(signal + noise))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=5000)
    parser.add_argument("--columns", type=int, default=6800)
    parser.add_argument("--atoms", type=int, default=500)
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = rows_of(args.documents, args.columns, args.atoms, args.seed)

    start = time.perf_counter()
    theirs = learn_minibatch(rows, args.atoms, alpha=args.alpha, seed=args.seed)
    theirs_seconds = time.perf_counter() - start
    print("| learner | rounds | seconds | of scikit-learn's time | objective | codes a document |")
    print("|---|---|---|---|---|---|")

    def line(name: str, rounds: int, seconds: float, objective: float, codes: float) -> None:
        share = seconds / theirs_seconds
        print(
            f"| {name} | {rounds} | {seconds:.1f} | {share:.2f} | {objective:.4f} | {codes:.1f} |", flush=True
        )

    line("scikit-learn", theirs.rounds, theirs_seconds, theirs.objective, theirs.codes_per_document)
    for rounds in ROUNDS:
        start = time.perf_counter()
        span: Span = GramSpan(rows.rows @ rows.rows.T) if args.documents <= args.columns else rows
        ours = learn(
            span,
            args.atoms,
            codes="signed",
            alpha=args.alpha,
            codes_per_document=0.0,
            seed=args.seed,
            outer=rounds,
        )
        seconds = time.perf_counter() - start
        line("ours", rounds, seconds, ours.objective, ours.codes_per_document)
        if ours.objective <= theirs.objective:
            return
    raise SystemExit("the objective was not reached")


if __name__ == "__main__":
    main()
