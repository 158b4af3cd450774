"""A query as a document of the audited data set: its tokens, its losses and its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from atomscope.bundle import Bundle, layout, read_documents
from atomscope.errors import InvalidInput
from atomscope.text import counted
from atomscope.types.attribution import AttributionQuery
from atomscope.types.bundle import Plan
from atomscope.types.spec import AuditSpec
from atomscope_workers.datasets.adapter_template import ADAPTER, chosen_template
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.datasets.rows import BadRow, RowFault, bad_row, parse_row
from atomscope_workers.datasets.tokenize import RowTokenizer
from atomscope_workers.models.base import check_base, load_tokenizer
from atomscope_workers.models.device import choose_device, dtype_of_name
from atomscope_workers.models.load import adapter_disabled, checked_parts
from atomscope_workers.models.lora import LoraModel
from atomscope_workers.models.positions import length_boundary
from atomscope_workers.pipeline.batches import collate
from atomscope_workers.pipeline.gradients import document_losses, gradient_norms, gradient_pass
from atomscope_workers.stages.determinism import deterministic
from atomscope_workers.stages.inputs import kept_model
from atomscope_workers.stages.limits import check_vocabulary, length_limit

QUERY = "query"
"""What the query is called in messages, as a file of one line."""


class AuditFiles(Protocol):
    """A finished audit as a query sees it."""

    @property
    def spec(self) -> AuditSpec: ...

    @property
    def bundle(self) -> Bundle: ...

    def holds(self, path: str) -> bool:
        """Whether the bundle was written with `path`."""
        ...

    def read(self, path: str) -> Path:
        """A local file with the content of the bundle's `path`; raises `AtomscopeError` without one."""
        ...

    def forget(self, path: str) -> None:
        """Let go of a large file that was read once, where it had to be fetched."""
        ...

    def base(self) -> Path:
        """The base model's folder; raises `InvalidInput` where it is gone or another."""
        ...

    def progress(self, done: int, total: int, unit: str) -> None: ...

    def checkpoint(self) -> None:
        """Raise when the query should not go on."""
        ...


@dataclass(frozen=True)
class TokenizedQuery:
    """The query's tokens, and what is to be said of them."""

    form: Literal["chat", "text"]
    document: TokenizedDocument
    warnings: list[str]


@dataclass(frozen=True)
class MeasuredQuery:
    """What one pass over the query gives."""

    gradients: dict[str, torch.Tensor]
    """Parameter -> float32 (d_out, d_in), on the CPU."""
    loss: float
    base_loss: float
    gradient_norm: float


def tokenize_query(files: AuditFiles, plan: Plan, query: AttributionQuery) -> TokenizedQuery:
    """The query's tokens, made as those of the audit's documents were.

    Raises `InvalidInput`: `bad_row` for a query that is no row of a data set, `no_targets` where no token of
    its completion is left, `tokenizer_mismatch`, and what checking base and tokenizer raises.
    """
    config, base = files.spec.config, check_base(files.base())
    limit = length_limit(base.config, config.max_length)
    row = parse_row(_row(files, plan, query), document=0, line=1, file=QUERY)
    if isinstance(row, BadRow):
        raise _refused(row)
    tokenizer = audited_rows(files, load_tokenizer(base.folder), base.config)
    try:
        document = tokenizer(row)
    except RowFault as fault:
        raise _refused(bad_row(fault, document=0, line=1, file=QUERY)) from fault
    if not document.target_mask.any():
        raise InvalidInput(
            "no_targets",
            f"the query has no target token among the {counted(len(document.input_ids), 'token')} kept "
            f"(at most {limit}): a shorter prompt or a longer completion is expected",
        )
    check_vocabulary(document, base.config, QUERY)
    warnings = [f"the query was cut to {limit} tokens"] if tokenizer.truncated else []
    return TokenizedQuery(row.form, document, warnings)


def audited_rows(
    files: AuditFiles, tokenizer: PreTrainedTokenizerBase, base: PretrainedConfig
) -> RowTokenizer:
    """What makes tokens of rows for a base model as those of the audit's documents were made.

    Raises `InvalidInput` as `chosen_template` and `RowTokenizer` do.
    """
    choice = files.spec.config.chat_template
    if choice == ADAPTER:
        choice = chosen_template(choice, files.read(layout.ADAPTER_TEMPLATE).parent)
    limit = length_limit(base, files.spec.config.max_length)
    return RowTokenizer(tokenizer, limit, choice, boundary=length_boundary(base))


def audited_model(files: AuditFiles, plan: Plan) -> LoraModel:
    """Base and adapter as they were audited; raises `InvalidInput` as loading them does."""

    def adapter() -> Path:
        files.read(layout.ADAPTER_CONFIG)
        return files.read(layout.ADAPTER_WEIGHTS).parent

    device, dtype = choose_device(), dtype_of_name(plan.compute_dtype)
    return kept_model(
        files.spec,
        dtype,
        device,
        lambda: checked_parts(files.base(), adapter(), dtype=dtype, device=device),
        files.base(),
    )


def audited_form(files: AuditFiles, plan: Plan) -> Literal["chat", "text"]:
    """What the first audited document is: a conversation, or plain text."""
    first = next(iter(read_documents(files.read(layout.DOCUMENTS), [plan.shards[0].documents[0]])))
    return "text" if first.messages[0]["role"] in ("prompt", "text") else "chat"


def measure_query(files: AuditFiles, plan: Plan, document: TokenizedDocument) -> MeasuredQuery:
    """Gradient and losses of the query, by the pass that the audit's documents had.

    Raises `InvalidInput`: `not_finite` where they are no finite numbers, `no_gradient` where the gradient is
    zero, and what loading the model raises.
    """

    lora = audited_model(files, plan)
    files.checkpoint()
    batch = collate([document], lora.device)
    with deterministic(lora.device):
        with gradient_pass(lora, recompute=plan.recompute) as run:
            found = run(batch)
        with adapter_disabled(lora):
            base = document_losses(lora, batch)
    loss, base_loss = float(found.losses[0]), float(base[0])
    norm = float(gradient_norms(found.gradients)[0])
    if not np.isfinite([loss, base_loss, norm]).all():
        raise InvalidInput("not_finite", "the loss or the gradient of the query is not a finite number")
    if norm == 0:
        raise InvalidInput("no_gradient", "the adapter's parameters have no gradient on this completion")
    gradients = {name: part[0].cpu() for name, part in found.gradients.items()}
    return MeasuredQuery(gradients, loss, base_loss, norm)


def _refused(row: BadRow) -> InvalidInput:
    first = row.problems[0]
    where = f"`{first.field}`: " if first.field else ""
    return InvalidInput("bad_row", f"the query cannot be used: {where}{first.message}", list(row.problems))


def _row(files: AuditFiles, plan: Plan, query: AttributionQuery) -> dict[str, Any]:
    """The row of a data set that the query is; two strings take the form of the first audited document."""
    if query.messages is not None:
        return {"messages": query.messages}
    if audited_form(files, plan) == "text":
        return {"prompt": query.prompt, "completion": query.completion}
    return {
        "messages": [
            {"role": "user", "content": query.prompt},
            {"role": "assistant", "content": query.completion},
        ]
    }
