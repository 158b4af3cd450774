"""What extraction costs beside the model's own passes, and beside its peers, in one run.

    benchmarks/peers/install.sh
    python benchmarks/extraction.py --base-model BASE --adapter ADAPTER --dataset FILE [--documents 96]

Every row works on the same documents, tokens and threads, and in the same dtype: bfloat16 where the device
multiplies it, or what `--dtype` says. The *bare pass* is the model's forward and backward alone: logits at
targets, no weight gradient, the backward begun at the embeddings. The fastest of transformers' kernels and
token budgets is found first, on the same documents, and then measured in turn with extraction; so is the
same pass under our attention. *Extraction* is what a shard costs but for the losses under the base of one
document in eight: the passes, every document's gradient, the curvature sums and the file; beside
kronfluence, whose fit has them, eigenbases and lambda are timed too. Beside a bare pass it is the median of
each round's ratio. The *paper's loop* runs one document after another, eager attention, all logits, with
the adapter's weight gradients. bergson and kronfluence run in an environment of their own, and give the
time of their collection alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from atomscope.types.spec import AuditConfig
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.datasets.reading import read_rows
from atomscope_workers.datasets.rows import BadRow
from atomscope_workers.datasets.tokenize import RowTokenizer
from atomscope_workers.models.base import check_base, load_tokenizer
from atomscope_workers.models.causal_attention import CAUSAL
from atomscope_workers.models.device import choose_device, choose_dtype, dtype_name
from atomscope_workers.models.load import load_lora_model
from atomscope_workers.models.lora import LoraModel
from atomscope_workers.pipeline.batches import Batch, collate
from atomscope_workers.pipeline.curvature import choose_components, measured_lambda, rotations, squared_sum
from atomscope_workers.pipeline.factors import FactorSums
from atomscope_workers.pipeline.plan import micro_batches
from atomscope_workers.stages.arrays import load_factors, save_curvature, save_factors
from atomscope_workers.stages.determinism import deterministic
from atomscope_workers.stages.extract import write_gradients
from atomscope_workers.stages.gradient_file import GradientShards, GradientWriter

BUDGETS = {"cpu": (512, 1024, 2048, 4096), "cuda": (4096, 8192, 16384, 32768)}
"""Token budgets tried by the bare pass."""
PRODUCTS = {f"aten::{name}" for name in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_")}
"""Operators that multiply matrices."""
PEERS = Path(__file__).parent / "peers"


def tokenized(base: Path, dataset: Path, count: int) -> list[TokenizedDocument]:
    """`count` documents with a target, spread evenly over the data set, as an audit makes them."""
    checked, config = check_base(base), AuditConfig()
    tokenizer = RowTokenizer(load_tokenizer(checked.folder), config.max_length, config.chat_template)
    rows = [
        row for row in read_rows(dataset, file=dataset.name, max_rows=10**7) if not isinstance(row, BadRow)
    ]
    step = max(1, len(rows) // count)
    found = [tokenizer(row) for row in rows[::step]]
    return [item for item in found if item.target_mask.any()][:count]


def batched(documents: list[TokenizedDocument], budget: int, lora: LoraModel) -> list[Batch]:
    by_row = {item.document: item for item in documents}
    lengths = {row: item.read for row, item in by_row.items()}
    return [
        collate([by_row[row] for row in rows], lora.device)
        for rows in micro_batches(sorted(lengths), lengths, budget, lora.device.type)
    ]


def bare(lora: LoraModel, batches: list[Batch]) -> None:
    """Forward and backward of every batch, and nothing else."""
    handle = lora.base.get_input_embeddings().register_forward_hook(lambda _, __, out: out.requires_grad_())
    head = lora.base.get_output_embeddings()
    try:
        for batch in batches:
            rows = batch.predictors

            def pick(
                _: torch.nn.Module, given: tuple[Any, ...], rows: torch.Tensor = rows
            ) -> tuple[Any, ...]:
                return (given[0].flatten(0, 1).index_select(0, rows).unsqueeze(0),)

            picking = head.register_forward_pre_hook(pick)
            logits = lora.base(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
            ).logits
            picking.remove()
            cross_entropy(logits[0].float(), batch.targets, reduction="sum").backward()
    finally:
        handle.remove()


def extraction(lora: LoraModel, batches: list[Batch], folder: Path) -> None:
    """What a shard does: gradients and sums of every batch, into files."""
    documents = np.array(sorted(row for batch in batches for row in batch.documents), dtype=np.int64)
    shapes = {parameter.name: parameter.shape for parameter in lora.parameters}
    factors = FactorSums()
    with (
        GradientWriter(folder / "gradients.safetensors", documents, shapes) as writer,
        deterministic(lora.device),
    ):
        write_gradients(lora, batches, factors, writer, lambda documents, losses, norms: None)
    save_factors(factors, folder / "factors.safetensors")


def curvature(lora: LoraModel, documents: int, folder: Path) -> None:
    """What follows a shard up to the curvature: eigenbases of its sums, lambda of its gradients, the file."""
    config = AuditConfig()
    gradients = GradientShards([folder / "gradients.safetensors"], lora.device)
    save_curvature(
        [
            choose_components(
                rotation,
                measured_lambda(squared_sum(rotation, gradients.shard(0, rotation.name)).cpu(), documents),
                preconditioner=config.preconditioner,
                components=config.components,
                damping=config.damping,
            )
            for rotation in rotations(load_factors(folder / "factors.safetensors"))
        ],
        folder / "curvature.safetensors",
    )


def paper_loop(lora: LoraModel, documents: list[TokenizedDocument], folder: Path) -> None:
    """One backward pass a document; gradients of the LoRA weights kept flat, as in the paper's scripts."""
    weights = {parameter.name: parameter.linear.weight for parameter in lora.parameters}
    for weight in weights.values():
        weight.requires_grad_(True)
    kept: list[np.ndarray] = []
    try:
        for item in documents:
            batch = collate([item], lora.device)
            logits = lora.base(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).logits
            cross_entropy(logits[0][batch.predictors].float(), batch.targets, reduction="sum").backward()
            kept.append(
                np.concatenate([weight.grad.float().flatten().cpu().numpy() for weight in weights.values()])
            )  # pyright: ignore[reportOptionalMemberAccess]
            for weight in weights.values():
                weight.grad = None
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    save_file({"gradients": np.stack(kept)}, folder / "loop.safetensors")


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peer(python: Path, script: str, arguments: list[str]) -> dict[str, Any]:
    """What a peer's script prints; raises where it fails."""
    done = subprocess.run(
        [str(python), str(PEERS / script), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _multiply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    torch.mm(a, b, out=out)


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a square product, the best of five."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.mm(a, b)
    return 2 * size**3 / min(timed(lambda: _multiply(a, b, out)) for _ in range(5))


def matmul_share(work: Callable[[], None], device: torch.device) -> tuple[float, list[tuple[str, float]]]:
    """Share of the operators' own time on the device that is matrix products, and the largest of all."""
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=kinds) as found:
        work()
    spent = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    # On a GPU an operator and its kernels are both listed, each with the kernels' time.
    rows = [item for item in found.key_averages() if item.key.startswith("aten::")]
    times = {item.key: getattr(item, spent) for item in rows}
    total = sum(times.values())
    products = sum(time for key, time in times.items() if key in PRODUCTS)
    others = sorted(((key, time / total) for key, time in times.items()), key=lambda item: -item[1])
    return products / total, others[:8]


def fastest_bare(lora: LoraModel, documents: list[TokenizedDocument]) -> tuple[str, int]:
    """Attention kernel and token budget with which the bare pass over the documents is quickest.

    Every third of them stands for all.
    """
    part = documents[::3]
    found: dict[tuple[str, int], float] = {}
    for attention in ("sdpa", "eager"):
        lora.base.set_attn_implementation(attention)
        for budget in BUDGETS[lora.device.type]:
            batches = batched(part, budget, lora)
            bare(lora, batches[:1])
            taken = timed(lambda batches=batches: bare(lora, batches))
            found[attention, budget] = taken
            told = f"{len(part) / taken:.2f} documents/s"
            print(f"  bare pass, {attention}, {budget} tokens: {told}", flush=True)
    return min(found, key=lambda choice: found[choice])


def in_turn(
    lora: LoraModel,
    documents: list[TokenizedDocument],
    bare_choice: tuple[str, int],
    own_budget: int,
    rounds: int,
    folder: Path,
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Seconds of the bare pass, of the same under our attention, of extraction and its curvature, in turn."""
    passes: list[float] = []
    under_ours: list[float] = []
    extractions: list[float] = []
    curvatures: list[float] = []
    attention, budget = bare_choice
    for _ in range(rounds):
        lora.base.set_attn_implementation(attention)
        batches = batched(documents, budget, lora)
        passes.append(timed(lambda batches=batches: bare(lora, batches)))
        lora.base.set_attn_implementation(CAUSAL)
        under_ours.append(timed(lambda batches=batches: bare(lora, batches)))
        lora.base.set_attn_implementation("sdpa")
        batches = batched(documents, own_budget, lora)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            extractions.append(timed(partial(extraction, lora, batches, Path(name))))
            curvatures.append(timed(partial(curvature, lora, len(documents), Path(name))))
    return passes, under_ours, extractions, curvatures


def for_peers(args: argparse.Namespace, documents: list[TokenizedDocument], folder: Path) -> list[str]:
    """Paths of the adapter, naming its base's folder, and of the documents as tokens, to the last target."""
    model, path = folder / "adapter", folder / "documents.jsonl"
    shutil.copytree(args.adapter, model)
    config = json.loads((model / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(args.base_model.resolve())
    (model / "adapter_config.json").write_text(json.dumps(config))
    rows = (
        {
            "input_ids": item.input_ids[: item.read + 1].tolist(),
            "labels": np.where(item.target_mask, item.input_ids, -100)[: item.read + 1].tolist(),
        }
        for item in documents
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(model), str(path)]


def flops(lora: LoraModel, documents: list[TokenizedDocument]) -> float:
    """Of a forward pass and the backward to its activations: 4 a weight and token, of the head a target."""
    head = lora.base.get_output_embeddings().weight
    embeddings = lora.base.get_input_embeddings().weight
    body = sum(item.numel() for item in lora.base.parameters() if item is not head and item is not embeddings)
    tokens = sum(item.read for item in documents)
    targets = sum(int(item.target_mask.sum()) for item in documents)
    return 4.0 * (body * tokens + head.numel() * targets)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base-model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=96)
    parser.add_argument("--budget", type=int, default=2048, help="token budget of extraction")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loop-every", type=int, default=1, help="documents of which the loop takes one")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peers", type=Path, default=Path(".bench/peers"), help="their environment")
    parser.add_argument("--no-peers", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    documents = tokenized(args.base_model, args.dataset, args.documents)
    device = choose_device()
    dtype = choose_dtype(AuditConfig(dtype=args.dtype), device)
    lora = load_lora_model(args.base_model, args.adapter, dtype=dtype, device=device)
    tokens = sum(item.read for item in documents)
    told = f"{tokens} tokens, {dtype_name(dtype)}, {args.threads} threads"
    print(f"{len(documents)} documents, {told}", flush=True)
    choice = fastest_bare(lora, documents)
    with tempfile.TemporaryDirectory(prefix="atomscope-extraction-") as name:
        folder = Path(name)
        passes, under_ours, extractions, curvatures = in_turn(
            lora, documents, choice, args.budget, args.rounds, folder
        )
        ours, more = statistics.median(extractions), statistics.median(curvatures)
        # Medians of each round's ratio: a machine is quicker in one round than in another.
        ratio, ratio_under_ours = (
            statistics.median(own / bare for own, bare in zip(extractions, bares, strict=True))
            for bares in (passes, under_ours)
        )
        print("\n| row | seconds | documents/s | ours takes of it |\n|---|---|---|---|")

        def row(title: str, taken: float, ratio: float | None = None) -> None:
            share = ours / taken if ratio is None else ratio
            print(f"| {title} | {taken:.1f} | {len(documents) / taken:.2f} | {share:.2f} |", flush=True)

        row("extraction: passes, gradients, sums, files", ours)
        row(f"bare pass ({choice[0]}, {choice[1]} tokens)", statistics.median(passes), ratio)
        row("bare pass under our attention", statistics.median(under_ours), ratio_under_ours)
        lora.base.set_attn_implementation("eager")
        part = documents[:: args.loop_every]
        loop = timed(lambda: paper_loop(lora, part, folder)) * len(documents) / len(part)
        row("the paper's loop", loop)
        if not args.no_peers:
            common = for_peers(args, documents, folder)
            python, threads = args.peers / "bin" / "python", str(args.threads)
            budget = str(args.budget)
            how = [dtype_name(dtype), threads]
            found = peer(python, "bergson_build.py", [*common, budget, *how, str(folder / "bergson")])
            row("`bergson build`", found["seconds"])
            found = peer(python, "kronfluence_ekfac.py", [*common, "8", *how, str(folder / "kronfluence")])
            row("extraction, then eigenbases, lambda and curvature", ours + more, 1.0)
            theirs = loop + found["seconds"]
            row("the paper's loop, then kronfluence's EKFAC; of that", theirs, (ours + more) / theirs)
        lora.base.set_attn_implementation("sdpa")
        batches = batched(documents[:: max(1, len(documents) // 32)], args.budget, lora)
        share, largest = matmul_share(lambda: extraction(lora, batches, folder), device)
    speed, peak = flops(lora, documents) / ours, matmul_peak(dtype, device)
    print(f"\nmatrix products take {share:.0%} of the operators' time")
    told = f"{speed / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s ({speed / peak:.0%})"
    print(f"the model's own products alone run at {told}")
    print("largest operators: " + ", ".join(f"{key} {part:.0%}" for key, part in largest))


if __name__ == "__main__":
    main()
