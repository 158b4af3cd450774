"""What an audit costs by size: time, storage and requests, from the counts that `docs/scaling.md` explains.

    python benchmarks/cost_model.py [--documents 1000000] [--tokens 300] [--gpus 1 4 16 64]

It measures nothing. The speeds of a GPU, a disk and a store are assumptions, given as options.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from atomscope_workers.pipeline.products import held_numbers
from atomscope_workers.stages.by_parameter import units_along

PART = 64 * 2**20
"""Bytes of one request of a multipart upload or download."""


@dataclass(frozen=True)
class Shape:
    """A decoder with grouped or full attention, and a LoRA on some of its layers."""

    name: str
    hidden: int
    inner: int
    layers: int
    key_values: int
    """Width of k and of v."""
    vocabulary: int
    rank: int
    targets: tuple[str, ...]

    def sizes(self, module: str) -> tuple[int, int]:
        """(inputs, outputs) of a linear layer."""
        wide, kv, inner = self.hidden, self.key_values, self.inner
        return {
            "q": (wide, wide), "k": (wide, kv), "v": (wide, kv), "o": (wide, wide),
            "gate": (wide, inner), "up": (wide, inner), "down": (inner, wide),
        }[module]  # fmt: skip

    @property
    def body(self) -> int:
        """Weights of the layers."""
        modules = ("q", "k", "v", "o", "gate", "up", "down")
        return self.layers * sum(a * b for a, b in (self.sizes(module) for module in modules))

    @property
    def gradient(self) -> int:
        """Numbers in a document's gradient, d."""
        return self.layers * self.rank * sum(sum(self.sizes(module)) for module in self.targets)

    @property
    def factors(self) -> list[int]:
        """Columns of one layer's large Kronecker sums: one for every distinct input, one for every output."""
        groups = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "mlp", "up": "mlp"}
        inputs = {groups.get(module, module): self.sizes(module)[0] for module in self.targets}
        return [*inputs.values(), *(self.sizes(module)[1] for module in self.targets)]

    @property
    def factor_numbers(self) -> int:
        """Numbers that a worker holds of all of them."""
        return self.layers * sum(map(held_numbers, self.factors))

    @property
    def factor_bytes(self) -> int:
        """Of all of them in a shard's file."""
        return self.layers * sum(2 * size * (size + 1) for size in self.factors)

    @property
    def basis_bytes(self) -> int:
        """Of all eigenvectors, which every unit that turns gradients reads."""
        return self.layers * sum(4 * size**2 for size in self.factors)

    def pass_flops(self, tokens: int) -> float:
        """Of a forward pass and the backward to activations; logits at half of the tokens."""
        return 4.0 * (self.body * tokens + self.vocabulary * self.hidden * tokens / 2)

    def factor_flops(self, tokens: int) -> float:
        return 2.0 * self.factor_numbers * tokens


ATTENTION, EVERY = ("q", "v"), ("q", "k", "v", "o", "gate", "up", "down")
SHAPES = (
    Shape("7B, r = 16 on q and v", 4096, 11008, 32, 4096, 32_000, 16, ATTENTION),
    Shape("7B, r = 16 on all seven", 4096, 11008, 32, 4096, 32_000, 16, EVERY),
)


def hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=300, help="of a document, on average")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--peak", type=float, default=790, help="TFLOP/s of bfloat16 products")
    parser.add_argument("--share", type=float, default=0.45, help="of these peaks which is reached")
    parser.add_argument("--sums", type=float, default=395, help="TFLOP/s of the sums' products (TF32)")
    parser.add_argument("--store", type=float, default=1.0, help="GB/s of one worker to or from the store")
    parser.add_argument("--shard", type=int, default=256)
    parser.add_argument("--directions", type=int, default=2048)
    parser.add_argument("--atoms", type=int, default=500, help="of which vectors are made")
    args = parser.parse_args()
    count, shards = args.documents, -(-args.documents // args.shard)
    for shape in SHAPES:
        flops, sums = shape.pass_flops(args.tokens), shape.factor_flops(args.tokens)
        computing = count * (flops / (args.peak * args.share) + sums / (args.sums * args.share)) / 1e12
        size, stored_sums = count * shape.gradient * 2.0, shards * shape.factor_bytes
        once = size / (args.store * 1e9)
        turning = once + shards * shape.basis_bytes / (args.store * 1e9)
        writing = once + stored_sums / (args.store * 1e9)
        # Read once by parameters; then every vector is put together of its parts.
        vectors = once + 3 * args.atoms * 4 * shape.gradient / (args.store * 1e9)
        # Twice: sums along directions, and products with them, which units write and one worker adds up.
        parameters = 2 * shape.layers * len(shape.targets)
        units = units_along(shards, parameters, shape.gradient, args.directions)
        products = 2 * units * count * args.directions * 4 / (args.store * 1e9)
        requests = 2 * shards * -(-int(size / shards) // PART) + 12 * shards
        print(
            f"\n{shape.name}: d = {shape.gradient / 1e6:.1f} M, sums {4 * shape.factor_numbers / 1e9:.0f} GB"
        )
        print(f"per document: pass {flops / 1e12:.1f} TFLOP, sums {sums / 1e12:.1f} TFLOP, ", end="")
        print(f"gradient {2 * shape.gradient / 1e6:.0f} MB in float16")
        print(f"stored: {size / 1e12:.1f} TB in {shards:,} shards, {requests:,} requests for them")
        alone = hours(stored_sums / (args.store * 1e9))
        print(f"sums stored: {stored_sums / 1e12:.1f} TB, read by one worker in {alone} h")
        print(f"eigenvectors: {shape.basis_bytes / 1e9:.0f} GB, read with every shard, for lambda and again")
        print(
            "| GPUs | passes and sums, h | writing, h | extraction, h | reading for lambda and sketch, h | ",
            end="",
        )
        print("for directions, h | for vectors, h |")
        print("|---|---|---|---|---|---|---|")
        for gpus in args.gpus:
            each = (
                computing / gpus,
                writing / gpus,
                # A worker sends a shard when its passes are done, and takes the next when it is sent.
                (computing + writing) / gpus,
                2 * turning / gpus,
                (4 * once + products) / min(gpus, units) + products,
                vectors / gpus,
            )
            print(f"| {gpus} | " + " | ".join(hours(item) for item in each) + " |")


if __name__ == "__main__":
    main()
