"""`--dry-run`: what an audit would cost on this machine, from a probe of it.

Every input is checked and every document tokenised, as the audit would; then one small batch is run, and one
eigendecomposition, one rotation and one dictionary fit are timed at the audit's own shapes. Bytes follow
from the shapes alone. Nothing is left behind.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from atomscope.bundle import layout
from atomscope.cli.registry import Estimate
from atomscope.types.bundle import Plan, ShardPlan
from atomscope.types.spec import AuditConfig, AuditSpec
from atomscope_workers.datasets.documents import TokenizedDocument, load_tokens
from atomscope_workers.memory import ROW_BYTES
from atomscope_workers.models.kept import held_bytes
from atomscope_workers.models.load import adapter_disabled
from atomscope_workers.models.lora import LoraModel
from atomscope_workers.pipeline.batches import collate
from atomscope_workers.pipeline.dictionary import fit
from atomscope_workers.pipeline.directions import SKETCH_PRODUCTS
from atomscope_workers.pipeline.factors import FactorSums
from atomscope_workers.pipeline.gradients import document_losses, gradient_pass
from atomscope_workers.pipeline.minibatch import BATCH, learner
from atomscope_workers.pipeline.plan import loss_sample, padded_tokens, padding_facts
from atomscope_workers.pipeline.products import held_numbers
from atomscope_workers.pipeline.span import unit_rows
from atomscope_workers.stages import validate
from atomscope_workers.stages.context import StageContext
from atomscope_workers.stages.inputs import lora_model, plan_gradient_dtype, read_plan, read_shards
from atomscope_workers.stages.rows import ROWS
from atomscope_workers.stages.shard_keys import to_extract
from atomscope_workers.stages.sizes import Shapes, bundle_bytes, shapes_of

PROBE_TOKENS = 1024
"""Padded tokens of the probe's batch, or one document where all are longer."""

MINIBATCH_STEPS = 40
"""Mini-batches that scikit-learn's solver is taken to need before it stops by itself."""

SPAN_COPIES = 10
"""Float32 copies of the whitened rows, or of the Gram matrix, that the dictionary stage holds at its peak."""


@dataclass(frozen=True)
class ModelProbe:
    """What one batch of the model cost."""

    gradient_seconds: float
    """Seconds a padded token, for gradients and factor sums."""
    loss_seconds: float
    """Seconds a padded token, forward with the adapter off."""
    resident: int
    """Bytes of the process with the model loaded."""
    activations: float
    """Bytes a padded token that the passes added to it."""
    groups: dict[str, str]


def estimate_audit(spec: AuditSpec, context: Callable[[AuditSpec, Path], StageContext]) -> Estimate:
    """Estimate the audit of `spec`; `context` gives the `validate` stage its folders under a path.

    Raises `InvalidInput` and `NothingToAudit` as the audit itself would.
    """
    with tempfile.TemporaryDirectory(prefix="atomscope-estimate-") as folder:
        ctx = context(spec, Path(folder))
        start = perf_counter()
        told = validate.run(ctx).summary["plan"]
        validated = perf_counter() - start
        plan = read_plan(ctx)
        tokens = load_tokens(ctx.read(layout.TOKENS))
        start = perf_counter()
        lora = lora_model(ctx, plan)
        loading = perf_counter() - start
        probe = probe_model(lora, _probe_batch(plan, tokens), recompute=plan.recompute)
        rows_bytes = ctx.read(ROWS).stat().st_size
        adapter_bytes = ctx.read(layout.ADAPTER_WEIGHTS).stat().st_size
        new = to_extract(plan, read_shards(ctx))
    shapes = shapes_of(
        spec.config,
        plan.n_documents,
        {item.name: item.shape for item in lora.parameters},
        probe.groups,
        plan_gradient_dtype(plan),
    )
    lengths = {row: item.read for row, item in tokens.items()}
    seconds = {
        "validate": validated,
        "extract": loading + _extract_seconds(new, lengths, probe),
        **_later_seconds(shapes, spec.config, lora.device),
    }
    files = bundle_bytes(shapes) | {"documents": rows_bytes, "adapter": adapter_bytes}
    return Estimate(
        documents=plan.n_documents,
        tokens=sum(len(item.input_ids) for item in tokens.values()),
        shards=len(plan.shards),
        seconds=sum(seconds.values()),
        memory_bytes=_peak_bytes(shapes, plan, lengths, probe),
        bundle_bytes=sum(files.values()),
        details={
            "device": plan.device_kind,
            "compute_dtype": plan.compute_dtype,
            "documents_extracted": told["documents_extracted"],
            "gradients": shapes.gradients if shapes.keeps_gradients else spec.config.gradients,
            "gradient_bytes": told["gradient_bytes"],
            "gradient_bytes_by_setting": told["gradient_bytes_by_setting"],
            # Of a run on one machine; in the service, of the extraction: removed at the end unless kept.
            "gradient_bytes_while_running": told["gradient_bytes_while_running"],
            "padding": round(padding_facts(plan, lengths)["share"], 4),
            "seconds_by_stage": {stage: round(value, 1) for stage, value in seconds.items()},
        },
    )


def probe_model(
    lora: LoraModel, documents: list[TokenizedDocument], *, recompute: bool = False
) -> ModelProbe:
    """Run `documents` as one batch, after one alone that warms the kernels."""
    factors = FactorSums()
    resident = psutil.Process().memory_info().rss
    batch = collate(documents, lora.device)
    with gradient_pass(lora, factors, recompute=recompute) as differentiate:
        differentiate(collate(documents[:1], lora.device))
        gradients = _timed(lambda: differentiate(batch), lora.device)
    with adapter_disabled(lora):
        losses = _timed(lambda: document_losses(lora, batch), lora.device)
    if lora.device.type == "cuda":
        peak, resident = torch.cuda.max_memory_allocated(lora.device), held_bytes(lora)
    else:
        peak = psutil.Process().memory_info().rss
    padded = batch.input_ids.numel()
    return ModelProbe(
        gradient_seconds=gradients / padded,
        loss_seconds=losses / padded,
        resident=resident,
        activations=max(0, peak - resident) / padded,
        groups=factors.groups,
    )


def _probe_batch(plan: Plan, tokens: dict[int, TokenizedDocument]) -> list[TokenizedDocument]:
    """Documents about the median length, as many as fit `PROBE_TOKENS`."""
    by_length = sorted(tokens.values(), key=lambda item: (item.read, item.document))
    middle = len(by_length) // 2
    width = by_length[middle].read
    count = max(1, min(PROBE_TOKENS, plan.token_budget) // width)
    return by_length[max(0, middle + 1 - count) : middle + 1]


def _extract_seconds(shards: Sequence[ShardPlan], lengths: Mapping[int, int], probe: ModelProbe) -> float:
    gradients = sum(padded_tokens(shard.micro_batches, lengths) for shard in shards)
    losses = sum(padded_tokens(loss_sample(shard), lengths) for shard in shards)
    return gradients * probe.gradient_seconds + losses * probe.loss_seconds


def _later_seconds(shapes: Shapes, config: AuditConfig, device: torch.device) -> dict[str, float]:
    """Seconds of the stages after extraction, from their kernels at the audit's shapes."""
    largest = min(1024, max(shapes.bases))
    matrix = torch.eye(largest, dtype=torch.float64) + torch.rand(largest, largest, dtype=torch.float64)
    symmetric = matrix + matrix.T

    def decompose() -> torch.Tensor:
        values: torch.Tensor = torch.linalg.eigh(symmetric)[0]
        return values

    eigen = _timed(decompose) / largest**3
    eigenbases = eigen * sum(size**3 for size in shapes.bases)
    rotation = 0.0
    timed: dict[tuple[int, int], float] = {}
    for rows, columns in shapes.parameters.values():
        if (rows, columns) not in timed:
            part = torch.rand(8, rows, columns, device=device)
            left = torch.rand(rows, rows, device=device)
            right = torch.rand(columns, columns, device=device)

            def rotate(
                left: torch.Tensor = left, part: torch.Tensor = part, right: torch.Tensor = right
            ) -> torch.Tensor:
                return (left @ part) @ right

            rotate()
            timed[rows, columns] = _timed(rotate, device) / 8
        rotation += timed[rows, columns] * shapes.documents
    # Products of a few rows over many coordinates, as the Gram matrix's blocks are.
    probe = torch.rand(256, 8192, device=device)
    product = _timed(partial(torch.matmul, probe, probe.T), device) / (256 * 256 * 8192)
    gram = product * shapes.documents**2 * shapes.gradient * (shapes.space == "gram")
    fitting = _fit_seconds(shapes, config)
    found = {
        "eigenbases": eigenbases,
        "lambdas": 0.0 if config.preconditioner == "kfac" else rotation,
        "project": rotation + gram,
        "dictionary": fitting,
        "evidence": fitting * (config.fits + config.surrogates),
        # The gradients once more, where atoms are sums of documents.
        "combine": rotation * (shapes.space != "components"),
    }
    if shapes.space == "directions":
        # Sums of gradients along directions and products with them, each time; and those of the sketch.
        along = 2 * product * shapes.documents * shapes.gradient * shapes.directions
        first = SKETCH_PRODUCTS * product * shapes.documents * shapes.sketch_columns * shapes.directions
        found |= {"directions": first, "along": along, "along_again": along}
    return found


def _fit_seconds(shapes: Shapes, config: AuditConfig) -> float:
    """From a few rows in as many clusters as atoms, so that codes are sparse as real ones are."""
    random = np.random.default_rng(config.seed)
    rows = min(BATCH, shapes.documents)
    atoms = min(shapes.atoms, rows)
    width = max(shapes.whitened, 1)
    centres = random.normal(size=(atoms, width))
    sample = centres[np.arange(rows) % atoms] + random.normal(size=(rows, width))
    if config.solver == "torch":
        span = unit_rows(torch.from_numpy(sample).float())
        return _timed(lambda: fit(span, atoms, config, config.seed)) * shapes.documents / rows
    if config.alpha == "auto":
        raise ValueError("the solver `sklearn` needs a number for `alpha`")
    sample /= np.linalg.norm(sample, axis=1, keepdims=True)
    solver = learner(atoms, config.alpha, config.seed)
    solver.partial_fit(sample)  # the first one also initialises the dictionary
    step = _timed(lambda: solver.partial_fit(sample))

    def code() -> NDArray[np.float64]:
        codes: NDArray[np.float64] = solver.transform(sample)
        return codes

    return step * MINIBATCH_STEPS + _timed(code) * shapes.documents / rows


def _peak_bytes(shapes: Shapes, plan: Plan, lengths: Mapping[int, int], probe: ModelProbe) -> int:
    """The largest of what extraction, eigenbases, lambda, directions and the dictionary hold."""
    widest = max(padded_tokens([batch], lengths) for shard in plan.shards for batch in shard.micro_batches)
    most = max(len(batch) for shard in plan.shards for batch in shard.micro_batches)
    sums = 4 * sum(map(held_numbers, shapes.bases))
    # The gradients of one batch are written while the next ones are made.
    extract = probe.activations * widest + 2 * 4 * most * shapes.gradient + sums
    shard = 4 * max(len(shard.documents) for shard in plan.shards)
    module = max(rows * columns for rows, columns in shapes.parameters.values())
    eigenbases = 3 * sums
    eigenvectors = 4 * sum(size**2 for size in shapes.bases)
    lambdas = eigenvectors + 8 * shapes.gradient + 3 * shard * module
    dictionary = SPAN_COPIES * 4 * shapes.documents * shapes.whitened
    directions = ROW_BYTES * shapes.documents * shapes.sketch_columns * (shapes.space == "directions")
    return probe.resident + int(max(extract, eigenbases, lambdas, directions, dictionary))


def _timed(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Seconds that `work` takes, the device's queue emptied before and after."""
    cuda = device is not None and device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    start = perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize(device)
    return perf_counter() - start
