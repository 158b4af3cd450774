"""The first stage: every input is checked before any work, documents are tokenised, and the plan is fixed.

Writes `spec.json` (with the versions that run the audit), `plan.json`, `documents/dropped.json` and
`documents/tokens.safetensors`, copies of the adapter and of the base's `config.json`, and for later stages
`work/rows.jsonl` and `work/shards.json`. A refit takes these over.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from atomscope.bundle import layout
from atomscope.errors import InputProblem, InvalidInput, NothingToAudit
from atomscope.text import counted
from atomscope.types.atoms import DroppedDocument
from atomscope.types.bundle import Plan, StoredShard
from atomscope.types.spec import AuditSpec, OnBadRow
from atomscope_workers.datasets.adapter_template import chosen_template, template_beside, template_file
from atomscope_workers.datasets.chat import REWRITES_TURNS
from atomscope_workers.datasets.documents import TokenizedDocument, save_tokens
from atomscope_workers.datasets.faults import RowFaults
from atomscope_workers.datasets.reading import count_rows, read_rows
from atomscope_workers.datasets.rows import BadRow, Row, RowFault, bad_row
from atomscope_workers.datasets.tokenize import RowTokenizer
from atomscope_workers.labels.settings import required_label_settings
from atomscope_workers.models import adapter as adapters
from atomscope_workers.models.adapter import CheckedAdapter, check_adapter
from atomscope_workers.models.base import (
    CheckedBase,
    build_meta_base,
    check_base,
    load_tokenizer,
)
from atomscope_workers.models.device import choose_device, choose_dtype
from atomscope_workers.models.load import CheckedParts, check_fit
from atomscope_workers.models.positions import length_boundary
from atomscope_workers.pipeline.budget import LEAST
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.stages.disk import require_disk
from atomscope_workers.stages.inputs import kept_model, plan_gradient_dtype, write_plan
from atomscope_workers.stages.limits import check_vocabulary, length_limit
from atomscope_workers.stages.planned_units import planned_units
from atomscope_workers.stages.planning import PlannedPass, fits_recomputed_alone
from atomscope_workers.stages.refit import take_over
from atomscope_workers.stages.retention import keeps_gradients
from atomscope_workers.stages.rows import ROWS, StoredRow
from atomscope_workers.stages.shard_keys import extractions_of, to_extract
from atomscope_workers.stages.sizes import fewest_groups, gradient_bytes_by_setting, shapes_of
from atomscope_workers.stages.token_budget import PassSize, found_size
from atomscope_workers.stages.versions import software_versions
from atomscope_workers.stages.warned import keep

MIN_DOCUMENTS = 2
_CHECK_EVERY = 64


@dataclass
class _Documents:
    """What reading a data set yields."""

    kept: list[TokenizedDocument] = field(default_factory=list)
    dropped: list[DroppedDocument] = field(default_factory=list)
    n_rows: int = 0
    warnings: list[str] = field(default_factory=list)


def run(ctx: StageContext) -> UnitResult:
    """Check base, adapter and data set in this order, load the model once, and write the plan.

    Raises `InvalidInput` and `NothingToAudit` with the codes listed in `docs/data.md`.
    """
    spec = ctx.spec
    ctx.progress(0, 0, "documents")
    if ctx.parent is not None:
        return take_over(ctx, ctx.parent)
    if spec.config.labels:
        required_label_settings(os.environ)
    base = check_base(ctx.input(spec.base_model))
    ctx.checkpoint()
    adapter = check_adapter(ctx.input(spec.adapter))
    check_fit(base, adapter)
    ctx.checkpoint()
    documents = _read_documents(ctx, base, adapter)
    _check_enough(documents, spec)
    device = choose_device()
    dtype = choose_dtype(spec.config, device)
    parameters = {name: (info.shape[0], info.shape[1]) for name, info in adapter.tensors.items()}
    made = PlannedPass(ctx, documents.kept, documents.n_rows, parameters, dtype, device)
    architecture = build_meta_base(base)
    wanted = spec.config.token_budget
    recompute = fits_recomputed_alone(made, architecture, LEAST if wanted == "auto" else wanted)
    lora = kept_model(
        spec,
        dtype,
        device,
        lambda: CheckedParts(base, adapter, dtype, device),
        base.folder,
    )
    ctx.checkpoint()
    size = found_size(
        lora,
        wanted,
        spec.base_model.sha256,
        made.lengths.values(),
        spec.config.shard_documents,
        ctx.checkpoint,
    )
    plan, shards = made.plan(PassSize(size.token_budget, size.recompute or recompute))
    units = planned_units(spec.config, plan.n_documents, len(plan.shards), parameters)
    require_disk(ctx, plan, shards, made.n_parameters, len(parameters), units)
    ctx.write_bytes(layout.SHARDS, msgspec.json.encode(shards))
    _write(ctx, base, adapter, documents)
    _write_shards(ctx, plan, shards, made.tokens)
    keep(ctx, documents.warnings)
    ctx.write_bytes(layout.SPEC, _json(msgspec.structs.replace(spec, versions=software_versions())))
    write_plan(ctx, plan)
    return UnitResult(
        shards=len(plan.shards),
        documents=plan.n_documents,
        summary={
            "warnings": documents.warnings,
            "extractions": extractions_of(shards),
            "plan": _plan_facts(made, documents, plan, shards),
            "units": units,
        },
    )


def _plan_facts(
    made: PlannedPass, documents: _Documents, plan: Plan, shards: list[StoredShard]
) -> dict[str, Any]:
    """What is told of the plan before its passes: how much there is to do, and what it will take to keep."""
    config, dtype = made.ctx.spec.config, plan_gradient_dtype(plan)
    shapes = shapes_of(config, plan.n_documents, made.parameters, fewest_groups(made.parameters), dtype)
    by_setting = gradient_bytes_by_setting(shapes)
    return {
        "n_rows": documents.n_rows,
        "n_dropped": len(documents.dropped),
        "n_documents": plan.n_documents,
        "documents_extracted": sum(len(shard.documents) for shard in to_extract(plan, shards)),
        "n_tokens": sum(len(item.input_ids) for item in made.documents),
        "n_target_tokens": plan.n_target_tokens,
        "n_parameters": made.n_parameters,
        "gradient_bytes": by_setting[dtype if keeps_gradients(config) else config.gradients],
        "gradient_bytes_while_running": by_setting[dtype],
        "gradient_bytes_by_setting": by_setting,
    }


def _read_documents(ctx: StageContext, base: CheckedBase, adapter: CheckedAdapter) -> _Documents:
    """Read and tokenise every row, writing the kept ones to `ROWS`."""
    spec = ctx.spec
    path = ctx.input(spec.dataset)
    file = spec.dataset.name or path.name
    limit = length_limit(base.config, spec.config.max_length)
    choice, loaded = spec.config.chat_template, load_tokenizer(base.folder)
    template, boundary = chosen_template(choice, adapter.folder), length_boundary(base.config)
    tokenizer = RowTokenizer(loaded, limit, template, boundary=boundary)
    other, unreadable = template_beside(loaded, choice, adapter.folder, limit)
    faults = RowFaults(spec.config.on_bad_row)
    found = _Documents()
    without_target: list[DroppedDocument] = []
    total = min(count_rows(path), ctx.max_rows) if path.is_file() else 0
    encoder = msgspec.json.Encoder()
    with (ctx.scratch / "rows.jsonl").open("wb") as rows:
        for item in read_rows(path, file=file, max_rows=ctx.max_rows, form=spec.config.row_form):
            if item.document % _CHECK_EVERY == 0:
                ctx.checkpoint()
                ctx.progress(item.document, max(total, item.document), "documents")
            found.n_rows = item.document + 1
            if isinstance(item, BadRow):
                faults.add(item)
                continue
            try:
                document = tokenizer(item)
            except (RowFault, InvalidInput) as error:
                fault = _row_fault(error, item, spec.config.on_bad_row)
                if other is not None:
                    fault = other.fault(item, fault)
                faults.add(bad_row(fault, document=item.document, line=item.line, file=file))
                continue
            if other is not None:
                other.compare(item, document.input_ids)
            if not document.target_mask.any():
                without_target.append(_no_target(item, len(document.input_ids), limit))
                continue
            check_vocabulary(document, base.config, f"row {document.document}")
            found.kept.append(document)
            stored = StoredRow(document=item.document, id=item.id, messages=item.stored())
            rows.write(encoder.encode(stored) + b"\n")
    faults.raise_any()
    ctx.progress(found.n_rows, found.n_rows, "documents")
    found.dropped = sorted([*faults.dropped, *without_target], key=lambda row: row.document)
    found.warnings = _warnings(len(faults.dropped), len(without_target), tokenizer, limit)
    found.warnings += unreadable + (other.warnings() if other is not None else [])
    return found


def _row_fault(error: RowFault | InvalidInput, row: Row, on_bad_row: OnBadRow) -> RowFault:
    """What is wrong with a row. Raises `error` where it is the template's, which no other row passes either.

    A template that rewrites the turns of one row may keep those of others: such rows can be skipped.
    """
    if isinstance(error, RowFault):
        return error
    if error.code != REWRITES_TURNS or on_bad_row != "skip":
        raise error
    return RowFault(row.field, error.detail)


def _no_target(row: Row, kept_tokens: int, limit: int) -> DroppedDocument:
    detail = f"no target token among its {counted(kept_tokens, 'token')} (at most {limit} are kept)"
    return DroppedDocument(document=row.document, line=row.line, reason="no_target", detail=detail)


def _check_enough(documents: _Documents, spec: AuditSpec) -> None:
    """Raise `NothingToAudit` where fewer than `MIN_DOCUMENTS` are left."""
    kept = len(documents.kept)
    if kept >= MIN_DOCUMENTS:
        return
    file = spec.dataset.name or Path(spec.dataset.location).name
    problems = [InputProblem(message=row.detail, file=file, line=row.line) for row in documents.dropped[:100]]
    dropped = f"; {_rows(len(documents.dropped))} dropped" if documents.dropped else ""
    if documents.n_rows == 0:
        raise NothingToAudit("empty_dataset", f"{file} holds no row", problems)
    if kept == 0 and any(row.reason == "no_target" for row in documents.dropped):
        raise NothingToAudit("no_targets", f"no row of {file} has a target token{dropped}", problems)
    raise NothingToAudit(
        "too_few_documents",
        f"{file} leaves {counted(kept, 'document')} to audit{dropped}; at least {MIN_DOCUMENTS} are needed",
        problems,
    )


def _rows(count: int) -> str:
    return counted(count, "row was", "rows were")


def _warnings(malformed: int, without_target: int, tokenizer: RowTokenizer, limit: int) -> list[str]:
    found: list[str] = []
    if malformed:
        found.append(f"{_rows(malformed)} skipped: malformed")
    if without_target:
        dropped = counted(without_target, "document was dropped", "documents were dropped")
        found.append(f"{dropped}: without a target token")
    if tokenizer.truncated:
        cut = counted(tokenizer.truncated, "document was", "documents were")
        found.append(f"{cut} cut to {limit} tokens")
    if tokenizer.merged:
        found.append(
            f"in {counted(tokenizer.merged, 'row')} one token holds characters of both prompt and "
            "completion: a target"
        )
    return found


def _write(ctx: StageContext, base: CheckedBase, adapter: CheckedAdapter, documents: _Documents) -> None:
    tokens = ctx.scratch / "tokens.safetensors"
    save_tokens(documents.kept, tokens)
    ctx.write(layout.TOKENS, tokens)
    ctx.write(ROWS, ctx.scratch / "rows.jsonl")
    ctx.write(layout.ADAPTER_CONFIG, adapter.folder / adapters.CONFIG)
    ctx.write(layout.ADAPTER_WEIGHTS, adapter.folder / adapters.WEIGHTS)
    if (template := template_file(adapter.folder)) is not None:
        ctx.write(layout.ADAPTER_TEMPLATE, template)
    if base.multimodal:
        ctx.write_bytes(layout.BASE_CONFIG, base.config.to_json_string(use_diff=False).encode())
    else:
        ctx.write(layout.BASE_CONFIG, base.folder / "config.json")
    ctx.write_bytes(layout.DROPPED, _json(documents.dropped))


def _write_shards(
    ctx: StageContext, plan: Plan, stored: list[StoredShard], tokens: dict[int, TokenizedDocument]
) -> None:
    """The tokens of every shard that is to be extracted, so that its worker reads no others."""
    for shard in to_extract(plan, stored):
        path = ctx.scratch / "shard.safetensors"
        save_tokens([tokens[row] for row in shard.documents], path)
        ctx.write(layout.shard_tokens(shard.index), path)


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1)
