"""Extraction of one shard: gradients, factor sums and losses, from the plan's micro-batches in their order.

A batch costs one forward and one backward pass for its gradients and sums, and one more forward pass, with
the adapter off, for its losses under the base alone.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from atomscope.bundle import layout
from atomscope_workers.datasets.documents import load_tokens
from atomscope_workers.models.load import adapter_disabled
from atomscope_workers.pipeline.batches import collate
from atomscope_workers.pipeline.factors import FactorSums
from atomscope_workers.pipeline.gradients import document_losses, gradient_pass
from atomscope_workers.stages.arrays import Losses, save_factors, save_losses
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.stages.inputs import lora_model, read_plan


def run(ctx: StageContext) -> UnitResult:
    """Write the shard's gradients with their `.json`, its losses and its factor sums."""
    plan = read_plan(ctx)
    shard = plan.shards[ctx.index]
    total = len(shard.documents)
    ctx.progress(0, total, "documents")
    tokens = load_tokens(ctx.read(layout.TOKENS))
    lora = lora_model(ctx, plan)
    position = {document: row for row, document in enumerate(shard.documents)}
    gradients = {
        parameter.name: np.zeros((total, *parameter.shape), dtype=np.float32) for parameter in lora.parameters
    }
    losses, base_losses = np.zeros(total), np.zeros(total)
    factors = FactorSums()
    done = 0
    with gradient_pass(lora, factors) as differentiate:
        for documents in shard.micro_batches:
            ctx.checkpoint()
            batch = collate([tokens[document] for document in documents], lora.device)
            found = differentiate(batch)
            rows = [position[document] for document in documents]
            for name, tensor in found.gradients.items():
                gradients[name][rows] = tensor.float().cpu().numpy()
            losses[rows] = found.losses.cpu().numpy()
            with adapter_disabled(lora):
                base_losses[rows] = document_losses(lora, batch).cpu().numpy()
            done += len(documents)
            ctx.progress(done, total, "documents")
    physical = np.array(shard.documents, dtype=np.int64)
    _write_gradients(ctx, physical, gradients)
    scratch = ctx.scratch / "losses.safetensors"
    save_losses(Losses(physical, losses, base_losses, _norms(gradients)), scratch)
    ctx.write(layout.shard_losses(ctx.index), scratch)
    scratch = ctx.scratch / "factors.safetensors"
    save_factors(factors, scratch)
    ctx.write(layout.factor_sums(ctx.index), scratch)
    return UnitResult(documents=total)


def _norms(gradients: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    squares = (np.square(tensor, dtype=np.float64).sum((1, 2)) for tensor in gradients.values())
    return np.sqrt(sum(squares))


def _write_gradients(
    ctx: StageContext, documents: NDArray[np.int64], gradients: dict[str, NDArray[np.float32]]
) -> None:
    for name, tensor in gradients.items():
        if not np.isfinite(tensor).all():
            rows = np.flatnonzero(~np.isfinite(tensor).all((1, 2)))
            raise ArithmeticError(f"the gradient of document {documents[rows[0]]} at {name} is not finite")
    path = layout.gradient_shard(ctx.index)
    scratch = ctx.scratch / "gradients.safetensors"
    save_file({"document": documents, **gradients}, scratch)
    ctx.write(path, scratch)
    facts = {
        "shard": ctx.index,
        "documents": len(documents),
        "dtype": "float32",
        "shapes": {name: list(tensor.shape[1:]) for name, tensor in gradients.items()},
        "base_model": ctx.spec.base_model.sha256,
        "adapter": ctx.spec.adapter.sha256,
        "dataset": ctx.spec.dataset.sha256,
    }
    ctx.write_bytes(path.removesuffix(".safetensors") + ".json", msgspec.json.encode(facts))
