"""Memory of this machine: what is free, what a piece of work takes, and what an audit cannot do without.

A floor, not a forecast: parts that are certain are added up, so that only what cannot fit is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from atomscope.errors import InvalidInput
from atomscope.types.bundle import Plan
from atomscope_workers.pipeline.plan import padded_tokens
from atomscope_workers.stages.sizes import Shapes

_CGROUP = Path("/sys/fs/cgroup")
_SAMPLE_SECONDS = 0.005
_GIB = 2**30

GRAM_BYTES = 16
"""Bytes a pair of documents, while the dictionary's Gram matrix is made: float32 four times."""
ROW_BYTES = 12
"""Bytes a value of the whitened rows, while they are joined and scaled."""


def free_bytes(device: torch.device) -> int:
    """Bytes that this process could still take: of the GPU, or of the host and of its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    left = _left_in_container(_CGROUP)
    return free if left is None else min(free, left)


def _left_in_container(folder: Path) -> int | None:
    """Bytes below the limit of the control group (version 2), but for its file cache; None without one."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return None if limit == "max" else max(0, int(limit) - used + int(facts.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None


@dataclass
class Peak:
    """Bytes that work took at its peak, above what the process held before; told when the block is left."""

    bytes: int = 0


@contextmanager
def measured_peak(device: torch.device) -> Generator[Peak]:
    """Measure what the block takes: of the GPU's allocator, or resident memory sampled every few ms."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    highest = [before]

    def sample() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            highest[0] = max(highest[0], process.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
    peak.bytes = max(highest[0], process.memory_info().rss) - before


@dataclass(frozen=True)
class Need:
    """What one stage cannot do without, by part."""

    stage: str
    parts: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())


def needs(
    shapes: Shapes,
    plan: Plan,
    lengths: Mapping[int, int],
    target_counts: Mapping[int, int],
    *,
    vocabulary: int,
    model: int,
    item: int,
) -> list[Need]:
    """Floors of the stages that hold most.

    `model` are bytes of weights that are still to be loaded, `item` those of a number of the model pass.
    """
    batches = [batch for shard in plan.shards for batch in shard.micro_batches]
    sums = 8 * sum(size * size for size in shapes.bases)
    captured = item * sum(shapes.inputs.values())
    extract = {
        "the model's weights": model,
        "inputs of the LoRA layers": captured * max(padded_tokens([batch], lengths) for batch in batches),
        "logits": 4 * vocabulary * max(sum(target_counts[row] for row in batch) for batch in batches),
        "gradients of a micro-batch": 4 * shapes.gradient * max(map(len, batches)),
        "curvature sums": sums,
    }
    documents = shapes.documents
    whitened = {
        "gram": {"inner products of the documents": GRAM_BYTES * documents**2},
        "sketch": {"the sketch": ROW_BYTES * documents * shapes.whitened},
        "components": {"whitened rows": ROW_BYTES * documents * shapes.whitened},
    }[shapes.space]
    return [
        Need("extract", extract),
        Need("curvature", {"curvature sums": 2 * sums, "lambda": 8 * shapes.gradient}),
        Need("dictionary", whitened),
    ]


_ADVICE = {
    "extract": "a smaller `token_budget` or `max_length`, `dtype: bfloat16`",
    "curvature": "an adapter of fewer or narrower layers",
    "dictionary": "a smaller `exact_documents` or `sketch_columns`",
}


def require_memory(wanted: list[Need], free: int, device: str) -> None:
    """Raise `InvalidInput` (`not_enough_memory`), with the numbers, for a stage that cannot fit."""
    for need in wanted:
        if need.bytes > free:
            parts = ", ".join(
                f"{name} {_size(size)}"
                for name, size in sorted(need.parts.items(), key=lambda part: -part[1])
            )
            raise InvalidInput(
                "not_enough_memory",
                f"`{need.stage}` needs at least {_size(need.bytes)} and {_size(free)} are free on {device}: "
                f"{parts}. What helps: more memory, or {_ADVICE[need.stage]}",
            )


def _size(count: int) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB / 100 else f"{count / 2**20:.2f} MiB"
