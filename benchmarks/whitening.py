"""What turning gradients into the eigenbases costs, beside one product a document and the matmul peak.

    python benchmarks/whitening.py [--documents 256] [--rank 8] [--sides 192 576 1536]

Random gradients of LoRA matrices, (rank, side) and (side, rank), a shard of them, and random orthogonal
bases. *One a document* is `left.T @ gradients @ right`, of which PyTorch makes as many products as there are
documents; *together* is `two_sided`. Both in turn, the best of `--rounds`; the limit is what the
multiplications take at the peak of large products.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from extraction import matmul_peak, timed

from atomscope_workers.pipeline.two_sided import two_sided


def one_a_document(left: torch.Tensor, gradients: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left^T G right, the smaller side first."""
    small_first = left.shape[0] < right.shape[0]
    return (left.T @ gradients) @ right if small_first else left.T @ (gradients @ right)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--sides", type=int, nargs="+", default=[192, 576, 1536])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(0)
    peak = matmul_peak(torch.float32, torch.device("cpu"))
    print(f"{args.documents} documents, rank {args.rank}, {torch.get_num_threads()} threads, ", end="")
    print(f"{peak / 1e9:.0f} GFLOP/s\n")
    print("| matrix | one a document, ms | together, ms | of its time | limit, ms |\n|---|---|---|---|---|")
    for side in args.sides:
        for rows, columns in ((args.rank, side), (side, args.rank)):
            gradients = torch.randn(args.documents, rows, columns)
            left, right = (torch.linalg.qr(torch.randn(size, size)).Q for size in (rows, columns))
            times = [
                [timed(partial(way, left, gradients, right)) for way in (one_a_document, two_sided)]
                for _ in range(args.rounds)
            ]
            alone, together = (1e3 * min(taken) for taken in zip(*times, strict=True))
            limit = 2e3 * args.documents * rows * columns * (rows + columns) / peak
            told = f"{alone:.1f} | {together:.1f} | {together / alone:.2f} | {limit:.1f}"
            print(f"| {rows} x {columns} | {told} |", flush=True)


if __name__ == "__main__":
    main()
