"""What a refit takes over from its parent, in place of `validate` and `extract`."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import msgspec
import numpy as np

from atomscope.bundle import layout
from atomscope.bundle.documents import iter_documents, read_documents
from atomscope.errors import InvalidInput
from atomscope.steering.names import parse_lora_name
from atomscope.types.atoms import AuditReport, DocumentRecord
from atomscope.types.bundle import Plan, ShardPlan, StoredShard
from atomscope.types.work import Stage
from atomscope_workers.labels.settings import required_label_settings
from atomscope_workers.memory import fit_needs, product_needs, require_memory
from atomscope_workers.models.device import choose_device
from atomscope_workers.models.headers import read_header
from atomscope_workers.pipeline.plan import loss_sample
from atomscope_workers.stages.arrays import MORE_LOSSES, Losses, load_losses, save_losses
from atomscope_workers.stages.context import Parent, StageContext, UnitResult
from atomscope_workers.stages.coordinates import DIRECTION_FACTS
from atomscope_workers.stages.disk import require_disk
from atomscope_workers.stages.inputs import plan_gradient_dtype, release_models, write_plan
from atomscope_workers.stages.lambdas import parent_measured
from atomscope_workers.stages.planned_units import planned_units
from atomscope_workers.stages.planning import free_memory
from atomscope_workers.stages.retention import require_kept
from atomscope_workers.stages.rows import ROWS, StoredRow
from atomscope_workers.stages.sizes import fewest_groups, shapes_of
from atomscope_workers.stages.space import HELD, same_whitening, space_of
from atomscope_workers.stages.versions import software_versions
from atomscope_workers.stages.warned import keep, kept

DOCUMENT_WARNINGS = "document_warnings"
"""Name among the report's details of the warnings of `validate`, which a refit repeats."""

_NEEDED = (layout.PLAN, layout.DROPPED, layout.TOKENS, layout.ADAPTER_CONFIG, layout.ADAPTER_WEIGHTS)
_KEPT = (layout.BASE_CONFIG, layout.ADAPTER_TEMPLATE)
"""Adopted where there is one: newer bundles have the first, those of some adapters the second."""


def take_over(ctx: StageContext, parent: Parent) -> UnitResult:
    """`validate`: the parent's plan, documents and adapter, under the refit's own spec.

    Raises `InvalidInput`: `old_bundle` where it was made before there were refits, `gradients_not_kept` and
    `gradients_missing` where its gradients, or the sketch of them, were not kept or are gone,
    `not_enough_memory` where the fits certainly do not fit this machine, and `not_enough_disk` where the
    gradients that they fetch do not.
    """
    if ctx.spec.config.labels:
        required_label_settings(os.environ)
    sketched = parent.spec.config.gradients == "sketch"
    require_kept(parent.spec.config, "a refit", sketch=True)
    if sketched and not parent.holds(layout.REPORT):
        raise InvalidInput(
            "not_extracted",
            f"a refit of `gradients: sketch` needs the whole audit; {layout.REPORT} is not there: let it end",
        )
    for path in _NEEDED:
        if not parent.holds(path):
            raise InvalidInput(
                "old_bundle", f"{path} is not in the bundle: it was made before there were refits"
            )
    plan = msgspec.json.decode(parent.read(layout.PLAN).read_bytes(), type=Plan)
    for path in _read_later(ctx, plan):
        ctx.checkpoint()
        if path == layout.DIRECTIONS and not parent.holds(path) and parent.holds(layout.projected_shard(0)):
            raise InvalidInput(
                "old_bundle",
                f"{path} is not in the bundle: it was made when so many documents were compared by sketches "
                "alone, and kept no gradients to find directions of. Run a whole audit",
            )
        if not parent.holds(path):
            raise InvalidInput(
                "gradients_missing",
                f"{path} is not there: it {'' if sketched else 'has expired, or '}was left out of a copy. "
                "A whole audit extracts gradients again",
            )
    for path in (*_NEEDED[1:], *(path for path in _KEPT if parent.holds(path))):
        ctx.adopt(path)
    warnings = _warnings(parent)
    parameters, whitened = _parameters(parent), _holds_whitened(ctx, parent, plan)
    units = planned_units(
        ctx.spec.config,
        plan.n_documents,
        len(plan.shards),
        parameters,
        refit=True,
        whitened=whitened,
        measured=parent_measured(parent),
    )
    _require_room(ctx, plan, parameters, units, whitened)
    device = choose_device().type
    if device != plan.device_kind:
        warnings.append(f"the gradients were extracted on {plan.device_kind}, and fitted on {device}")
        plan = msgspec.structs.replace(plan, device_kind=device)
    write_plan(ctx, plan)
    _rows(ctx, parent)
    stored = [] if sketched else [_stored(parent, shard) for shard in plan.shards]
    ctx.write_bytes(layout.SHARDS, msgspec.json.encode(stored))
    keep(ctx, warnings)
    ctx.write_bytes(HELD, msgspec.json.encode(whitened))
    spec = msgspec.structs.replace(ctx.spec, versions=software_versions())
    ctx.write_bytes(layout.SPEC, msgspec.json.format(msgspec.json.encode(spec), indent=1))
    ctx.progress(plan.n_documents, plan.n_documents, "documents")
    return UnitResult(
        shards=len(plan.shards),
        documents=plan.n_documents,
        summary={"warnings": warnings, "units": units},
    )


def _parameters(parent: Parent) -> dict[str, tuple[int, int]]:
    """Shapes of the LoRA matrices of the parent's adapter."""
    header = read_header(parent.read(layout.ADAPTER_WEIGHTS), layout.ADAPTER_WEIGHTS)
    return {
        name: (item.shape[0], item.shape[-1])
        for name, item in header.items()
        if parse_lora_name(name) is not None
    }


def _require_room(
    ctx: StageContext,
    plan: Plan,
    parameters: dict[str, tuple[int, int]],
    units: dict[Stage, int],
    whitened: bool,
) -> None:
    """Raise `InvalidInput` where fits, or the gradients that they read, certainly do not fit this machine."""
    groups = fewest_groups(parameters)
    shapes = shapes_of(ctx.spec.config, plan.n_documents, parameters, groups, plan_gradient_dtype(plan))
    wanted, device = fit_needs(shapes), choose_device()
    if not whitened:
        wanted += product_needs(shapes)
    if not all(map(free_memory(device).holds, wanted)):
        release_models()
    require_memory(wanted, free_memory(device))
    if ctx.spec.config.gradients != "sketch":
        there = [StoredShard(name="", location=str(shard.index)) for shard in plan.shards]
        require_disk(ctx, plan, there, shapes.gradient, len(parameters), units)


def _holds_whitened(ctx: StageContext, parent: Parent, plan: Plan) -> bool:
    """Whether the parent has the whitened documents of the refit, and what is to be told of them."""
    if ctx.spec.config.gradients == "sketch":
        return True
    whitened = _whitened(ctx, plan)
    told = whitened != [layout.DIRECTIONS] or parent.holds(DIRECTION_FACTS) or parent.holds(layout.REPORT)
    return told and same_whitening(ctx.spec, parent, plan.n_documents) and all(map(parent.holds, whitened))


def _whitened(ctx: StageContext, plan: Plan) -> list[str]:
    """Where the whitened documents lie."""
    space = space_of(ctx.spec.config, plan.n_documents)
    if space == "gram":
        return [layout.GRAM]
    if space == "directions":
        return [layout.DIRECTIONS]
    return [layout.projected_shard(shard.index) for shard in plan.shards]


def _read_later(ctx: StageContext, plan: Plan) -> list[str]:
    """What the parent kept of gradients, and later stages read."""
    indices = [shard.index for shard in plan.shards]
    if ctx.spec.config.gradients != "sketch":
        return [layout.gradient_shard(index) for index in indices]
    space = space_of(ctx.spec.config, plan.n_documents)
    basis = [] if space == "components" else [layout.BASIS, layout.BASIS_WEIGHTS]
    return [layout.CURVATURE, *_whitened(ctx, plan), *map(layout.gradient_sketch, indices), *basis]


def take_over_shard(ctx: StageContext, parent: Parent, shard: ShardPlan) -> UnitResult:
    """`extract`: the parent's gradients and losses of one shard.

    Factor sums too where the parent is work under way; of a bundle, its curvature holds what they led to.
    """
    total = len(shard.documents)
    ctx.progress(0, total, "documents")
    if parent.spec.config.gradients != "sketch":
        path = layout.gradient_shard(shard.index)
        ctx.adopt(path)
        ctx.adopt(path.removesuffix(".safetensors") + ".json")
    if parent.holds(layout.factor_sums(shard.index)):
        ctx.adopt(layout.factor_sums(shard.index))
    scratch = ctx.scratch / "losses.safetensors"
    save_losses(_losses(parent, shard), scratch)
    ctx.write(layout.shard_losses(shard.index), scratch)
    ctx.progress(total, total, "documents")
    return UnitResult(documents=total)


def _stored(parent: Parent, shard: ShardPlan) -> StoredShard:
    """Where the parent's gradients of a shard lie."""
    key = parent.shared.get(layout.gradient_shard(shard.index))
    return StoredShard(name="", location=f"{key.rpartition('/')[0]}/" if key is not None else None)


def _warnings(parent: Parent) -> list[str]:
    """What reading the documents was warned of."""
    told = kept("validate")
    if parent.holds(told):
        return msgspec.json.decode(parent.read(told).read_bytes(), type=list[str])
    report = msgspec.json.decode(parent.read(layout.REPORT).read_bytes(), type=AuditReport)
    return msgspec.convert(report.details.get(DOCUMENT_WARNINGS, []), list[str])


def _rows(ctx: StageContext, parent: Parent) -> None:
    if parent.holds(ROWS):
        ctx.adopt(ROWS)
        return
    encoder = msgspec.json.Encoder()
    scratch = ctx.scratch / "rows.jsonl"
    with scratch.open("wb") as rows:
        for record in iter_documents(parent.read(layout.DOCUMENTS)):
            row = StoredRow(document=record.document, id=record.id, messages=record.messages)
            rows.write(encoder.encode(row) + b"\n")
    ctx.write(ROWS, scratch)


def _losses(parent: Parent, shard: ShardPlan) -> Losses:
    """The losses that the extraction wrote, and apart from them what the evidence measured later.

    The extraction's even sample stays what it was: of it alone the report takes its means.
    """
    path = layout.shard_losses(shard.index)
    if not parent.holds(path):
        return _told(read_documents(parent.read(layout.DOCUMENTS), shard.documents), shard)
    found = load_losses([parent.read(path)])
    if not parent.holds(MORE_LOSSES):
        return found
    more = load_losses([parent.read(MORE_LOSSES)])
    measured = dict(zip(more.document.tolist(), more.base_loss.tolist(), strict=True))
    return replace(
        found, parent_base_loss=np.array([measured.get(row, math.nan) for row in found.document.tolist()])
    )


def _told(records: list[DocumentRecord], shard: ShardPlan) -> Losses:
    """The same of a bundle, whose documents hold them."""
    found = {record.document: record for record in records}
    missing = [row for row in shard.documents if row not in found]
    if missing:
        raise InvalidInput("bundle_damaged", f"document {missing[0]} of the plan is not among the documents")
    sampled = {row for batch in loss_sample(shard) for row in batch}
    kept = [found[row] for row in shard.documents]
    base = np.array([math.nan if record.base_loss is None else record.base_loss for record in kept])
    even = np.array([record.document in sampled for record in kept])
    return Losses(
        np.array(shard.documents, dtype=np.int64),
        np.array([record.loss for record in kept]),
        np.where(even, base, math.nan),
        np.array([record.gradient_norm for record in kept]),
        np.where(even, math.nan, base),
    )
