"""What causal attention costs on a CPU, forward and backward: our own beside PyTorch's kernel and operators.

    python benchmarks/attention.py [--heads 9] [--groups 3] [--width 64] [--tokens 800] [--scores 1]

Batches of random queries, keys and values, laid out as a model's projections leave them, each as many
documents of one length as hold some `--tokens`. *Operators* is transformers' `eager` attention, *fused* its
`sdpa`, both beside the mask that padding brings; *fused, no mask* is what `sdpa` makes of documents without
padding. In random order, the median of `--rounds`. The error is the largest of output and three gradients, in
the norm of float64's.
"""

from __future__ import annotations

import argparse
import random
import statistics
from functools import partial

import torch
from extraction import timed
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import eager_attention_forward

from atomscope_workers.models.causal_attention import CAUSAL

LENGTHS = (20, 60, 115, 200, 280, 512, 1024, 2048)


class Layer(torch.nn.Module):
    """All that the kernels look at in a layer."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups
        self.is_causal = True


def run(
    kernel: str, layer: Layer, given: list[torch.Tensor], gradient: torch.Tensor, mask: torch.Tensor | None
) -> list[torch.Tensor]:
    """Output and gradients of one forward and backward pass."""
    attend = eager_attention_forward if kernel == "eager" else AttentionInterface()[kernel]
    leaves = [item.detach().requires_grad_() for item in given]
    scale = given[0].shape[-1] ** -0.5
    found = attend(layer, *leaves, mask, scaling=scale, dropout=0.0)[0]
    return [found.detach(), *torch.autograd.grad(found, leaves, gradient)]


def padding_mask(documents: int, length: int, dtype: torch.dtype, kernel: str) -> torch.Tensor:
    """Causal, as transformers gives it to a kernel: what may be seen, or what is added to the scores."""
    seen = torch.ones(length, length, dtype=torch.bool).tril().expand(documents, 1, -1, -1)
    if kernel != "eager":
        return seen.contiguous()
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--groups", type=int, default=3, help="key heads")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=800)
    parser.add_argument("--scores", type=float, default=1.0, help="their standard deviation")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    layer = Layer(args.heads // args.groups)
    cases = {"operators": "eager", "fused": "sdpa", "fused, no mask": "sdpa", "ours": CAUSAL}
    print(f"{torch.get_num_threads()} threads, milliseconds; error in brackets\n")
    print(f"| dtype | documents x tokens | {' | '.join(cases)} |\n|---|---|{'---|' * len(cases)}")
    for dtype in (torch.bfloat16, torch.float32):
        for length in LENGTHS:
            torch.manual_seed(length)
            documents = max(1, args.tokens // length)
            shapes = ((args.heads, args.width), (args.groups, args.width), (args.groups, args.width))
            states = [torch.randn(documents, length, *shape) for shape in shapes]
            states[0] *= args.scores
            given = [item.to(dtype).transpose(1, 2) for item in states]
            gradient = torch.randn(documents, length, args.heads, args.width).to(dtype)
            ways = {
                name: partial(
                    run,
                    kernel,
                    layer,
                    given,
                    gradient,
                    padding_mask(documents, length, dtype, kernel)
                    if name in ("operators", "fused")
                    else None,
                )
                for name, kernel in cases.items()
            }
            exact = run("sdpa", layer, [item.double() for item in given], gradient.double(), None)
            errors = {
                name: max(
                    float((own.double() - right).norm() / right.norm())
                    for own, right in zip(way(), exact, strict=True)
                )
                for name, way in ways.items()
            }
            taken: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(args.rounds):
                for name in random.sample(list(ways), len(ways)):
                    taken[name].append(timed(ways[name]))
            told = [f"{1e3 * statistics.median(taken[name]):.1f} ({errors[name]:.0e})" for name in ways]
            print(f"| {str(dtype)[6:]} | {documents} x {length} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
