"""Extraction of one shard: gradients, factor sums and losses, from the plan's micro-batches in their order.

A batch costs one forward and one backward pass for its gradients and sums; they are checked and written in a
thread while the next batch is run. A sample of the shard is run forward once more, with the adapter off, for
its losses under the base alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from atomscope.bundle import layout
from atomscope.errors import InvalidInput
from atomscope.types.bundle import ShardPlan
from atomscope_workers.background import BackgroundCalls
from atomscope_workers.datasets.documents import load_tokens
from atomscope_workers.models.device import Computed
from atomscope_workers.models.load import adapter_disabled
from atomscope_workers.models.lora import LoraModel
from atomscope_workers.pipeline.batches import Batch, collate
from atomscope_workers.pipeline.factors import FactorSums
from atomscope_workers.pipeline.gradients import (
    BatchGradients,
    document_losses,
    gradient_norms,
    gradient_pass,
)
from atomscope_workers.pipeline.plan import loss_sample
from atomscope_workers.stages.arrays import Losses, save_factors, save_losses
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.stages.determinism import deterministic
from atomscope_workers.stages.gradient_file import GradientWriter
from atomscope_workers.stages.inputs import lora_model, plan_gradient_dtype, read_shard_plan, read_shards
from atomscope_workers.stages.refit import take_over_shard
from atomscope_workers.stages.retention import keeps_gradients


def run(ctx: StageContext) -> UnitResult:
    """Write the shard's gradients with their `.json`, its losses and its factor sums.

    Raises `InvalidInput` (`not_finite`) when a document's loss or gradient is not a finite number.
    """
    plan, shard = read_shard_plan(ctx)
    if ctx.parent is not None:
        return take_over_shard(ctx, ctx.parent, shard)
    if keeps_gradients(ctx.spec.config) and read_shards(ctx)[ctx.index].location is not None:
        return _as_stored(ctx, shard)
    total = len(shard.documents)
    ctx.progress(0, total, "documents")
    tokens = load_tokens(ctx.read(layout.shard_tokens(ctx.index)))
    lora = lora_model(ctx, plan)
    physical = np.array(shard.documents, dtype=np.int64)
    shapes = {parameter.name: parameter.shape for parameter in lora.parameters}
    dtype = plan_gradient_dtype(plan)
    scratch = ctx.scratch / "gradients.safetensors"
    losses, base_losses, norms = np.zeros(total), np.full(total, np.nan), np.zeros(total)
    factors = FactorSums()
    written: list[int] = []

    def batches() -> Iterator[Batch]:
        for documents in shard.micro_batches:
            ctx.checkpoint()
            ctx.progress(len(written), total, "documents")
            yield collate([tokens[document] for document in documents], lora.device)

    def keep(documents: list[int], summed: NDArray[np.float64], lengths: NDArray[np.float64]) -> None:
        _check_finite(documents, summed, lengths)
        rows = np.searchsorted(physical, documents)
        losses[rows], norms[rows] = summed, lengths
        written.extend(documents)

    with GradientWriter(scratch, physical, shapes, dtype) as gradients, deterministic(lora.device):
        write_gradients(lora, batches(), factors, gradients, keep, recompute=plan.recompute)
        for documents in loss_sample(shard):
            ctx.checkpoint()
            with adapter_disabled(lora):
                under_base = document_losses(lora, collate([tokens[row] for row in documents], lora.device))
            rows = np.searchsorted(physical, documents)
            base_losses[rows] = _numpy(under_base)
            _check_finite(documents, base_losses[rows])
    ctx.progress(total, total, "documents")
    ctx.write(layout.gradient_shard(ctx.index), scratch)
    facts = {"documents": total, "dtype": dtype, "shapes": shapes}
    ctx.write_bytes(layout.shard_facts(ctx.index), msgspec.json.encode(facts))
    _write_facts(ctx, facts)
    scratch = ctx.scratch / "losses.safetensors"
    save_losses(Losses(physical, losses, base_losses, norms), scratch)
    ctx.write(layout.shard_losses(ctx.index), scratch)
    scratch = ctx.scratch / "factors.safetensors"
    save_factors(factors, scratch)
    ctx.write(layout.factor_sums(ctx.index), scratch)
    return UnitResult(documents=total)


def write_gradients(
    lora: LoraModel,
    batches: Iterable[Batch],
    factors: FactorSums,
    gradients: GradientWriter,
    keep: Callable[[list[int], NDArray[np.float64], NDArray[np.float64]], None],
    *,
    recompute: bool = False,
) -> None:
    """One forward and one backward pass a batch; its gradients go to the file, its tokens into the sums.

    `keep` is given each batch's documents, their losses and the norms of their gradients before these are
    written, in a thread beside the next pass; what it raises is raised here, and ends the work.
    """
    with (
        gradient_pass(lora, factors, recompute=recompute) as differentiate,
        closing(BackgroundCalls("gradients", at_once=1, waiting=0)) as writing,
    ):

        def write(documents: list[int], found: BatchGradients, computed: Computed) -> None:
            with computed:
                keep(documents, _numpy(found.losses), _numpy(gradient_norms(found.gradients)))
                gradients.write(documents, found.gradients)

        for batch in batches:
            found = differentiate(batch)
            writing.add(partial(write, list(batch.documents), found, Computed(lora.device)))
        writing.finish()


def _numpy(values: torch.Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = values.cpu().numpy()
    return array


def _check_finite(documents: list[int], *values: NDArray[np.float64]) -> None:
    fine = np.logical_and.reduce([np.isfinite(item) for item in values])
    if not fine.all():
        row = documents[int(np.flatnonzero(~fine)[0])]
        raise InvalidInput(
            "not_finite",
            f"the loss or the gradient of document {row} is not a finite number: the weights of base or "
            "adapter are broken, or too large for the compute dtype",
        )


def _as_stored(ctx: StageContext, shard: ShardPlan) -> UnitResult:
    """Nothing is run for a shard that another audit extracted."""
    total = len(shard.documents)
    ctx.progress(0, total, "documents")
    _write_facts(ctx, msgspec.json.decode(ctx.read(layout.shard_facts(ctx.index)).read_bytes()))
    ctx.progress(total, total, "documents")
    return UnitResult(documents=total)


def _write_facts(ctx: StageContext, facts: dict[str, Any]) -> None:
    """What the gradients of a shard are gradients of."""
    own = {
        "base_model": ctx.spec.base_model.sha256,
        "adapter": ctx.spec.adapter.sha256,
        "dataset": ctx.spec.dataset.sha256,
    }
    path = layout.gradient_shard(ctx.index).removesuffix(".safetensors") + ".json"
    ctx.write_bytes(path, msgspec.json.encode({"shard": ctx.index, **facts, **own}))
