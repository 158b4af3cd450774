"""The pass over the documents, planned: its batches about what is stored, and what its device holds of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedModel

from atomscope.types.bundle import Plan, StoredShard
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.memory import Free, Need, needs, require_memory
from atomscope_workers.models.device import dtype_name
from atomscope_workers.models.device_memory import free_bytes, free_host_bytes
from atomscope_workers.models.offload import decoder_layers, least_bytes, weight_bytes
from atomscope_workers.pipeline.plan import make_plan
from atomscope_workers.pipeline.storage import GradientDtype, gradient_dtypes
from atomscope_workers.stages.context import StageContext
from atomscope_workers.stages.inputs import holds_model
from atomscope_workers.stages.retention import keeps_gradients
from atomscope_workers.stages.shard_keys import KnownRuns, extraction_context, to_extract
from atomscope_workers.stages.sizes import fewest_groups, shapes_of
from atomscope_workers.stages.token_budget import PassSize


@dataclass
class PlannedPass:
    """What the plan of the pass over the documents follows from, but for what a batch may hold."""

    ctx: StageContext
    documents: list[TokenizedDocument]
    n_rows: int
    """Rows of the data set, those that were dropped included."""
    parameters: dict[str, tuple[int, int]]
    """Parameter name -> (d_out, d_in)."""
    dtype: torch.dtype
    device: torch.device

    @cached_property
    def tokens(self) -> dict[int, TokenizedDocument]:
        return {item.document: item for item in self.documents}

    @cached_property
    def lengths(self) -> dict[int, int]:
        """Tokens that are run, by physical row."""
        return {row: item.read for row, item in self.tokens.items()}

    @cached_property
    def target_counts(self) -> dict[int, int]:
        return {row: int(item.target_mask.sum()) for row, item in self.tokens.items()}

    @property
    def n_parameters(self) -> int:
        return sum(rows * columns for rows, columns in self.parameters.values())

    @property
    def gradient_dtypes(self) -> list[GradientDtype]:
        return gradient_dtypes(self.ctx.spec.config.gradients, len(self.tokens), self.n_parameters)

    def plan(self, size: PassSize) -> tuple[Plan, list[StoredShard]]:
        """The plan, and where each of its shards is stored or is to be; none where gradients are not kept.

        `auto` may find half of the documents or more stored in the dtype that it would not choose, as when a
        set has grown past its bound: it takes that one, so that only what is new is extracted.
        """
        if not keeps_gradients(self.ctx.spec.config):
            return self.plan_in(self.gradient_dtypes[0], size), []
        known = self.ctx.known_shards()
        found: list[tuple[Plan, list[StoredShard]]] = []
        for dtype in self.gradient_dtypes:
            context = extraction_context(self.ctx.spec, dtype_name(self.dtype), self.device.type, dtype)
            stored = KnownRuns(context, self.tokens, known)
            plan = self.plan_in(dtype, size, stored)
            shards = [stored.stored(shard.documents, shard.micro_batches) for shard in plan.shards]
            found.append((plan, shards))
            new = sum(len(shard.documents) for shard in to_extract(plan, shards))
            if 2 * new <= len(self.tokens):
                return plan, shards
        return found[0]

    def plan_in(self, dtype: GradientDtype, size: PassSize, stored: KnownRuns | None = None) -> Plan:
        """The plan about what is `stored`, gradients in `dtype`."""
        return make_plan(
            self.lengths,
            self.target_counts,
            n_rows=self.n_rows,
            token_budget=size.token_budget,
            recompute=size.recompute,
            shard_documents=self.ctx.spec.config.shard_documents,
            compute_dtype=dtype_name(self.dtype),
            device_kind=self.device.type,
            gradient_dtype=dtype,
            stored=stored,
        )


def free_memory(device: torch.device) -> Free:
    """What is free on a device and its host, what earlier audits left there given back."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    there = free_bytes(device)
    return Free(device.type, there, there if device.type == "cpu" else free_host_bytes())


def fits_recomputed_alone(made: PlannedPass, architecture: PreTrainedModel, token_budget: int) -> bool:
    """Whether the audit fits this device only if layers are recomputed, by what is certain of its memory.

    `architecture` is the base, which may be on `meta`. Raises `InvalidInput` (`not_enough_memory`), before
    the model is loaded, where the audit does not fit so either.
    """
    spec, dtype, device = made.ctx.spec, made.dtype, made.device
    weights = weight_bytes(architecture, dtype)
    to_load = 0 if holds_model(spec, dtype, device, weights) else least_bytes(architecture, dtype)
    gradients = made.gradient_dtypes[0]
    shapes = shapes_of(
        spec.config, len(made.tokens), made.parameters, fewest_groups(made.parameters), gradients
    )
    free = free_memory(device)

    def wanted(recompute: bool) -> list[Need]:
        return needs(
            shapes,
            made.plan_in(gradients, PassSize(token_budget, recompute)),
            made.lengths,
            made.target_counts,
            vocabulary=int(architecture.config.vocab_size),
            model=to_load,
            item=dtype.itemsize,
            hidden=int(architecture.config.hidden_size) * len(decoder_layers(architecture)),
        )

    if all(free.holds(need) for need in wanted(False)):
        return False
    require_memory(wanted(True), free)
    return True
