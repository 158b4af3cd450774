"""What an audit finds: documents, atoms and the report, as the bundle and the API give them."""

from __future__ import annotations

from typing import Any

import msgspec


class DocumentRef(msgspec.Struct, kw_only=True, frozen=True):
    """A document behind an atom."""

    document: int
    """Physical row of the data set, from 0."""
    value: float
    """Its code on the atom, after the atom's sign was resolved."""
    preview: str = ""
    """The beginning of its text, as it is in the data: escape it wherever it is shown."""


class Atom(msgspec.Struct, kw_only=True, frozen=True):
    """An update direction that a cluster of documents shares (section 3.3), its sign resolved."""

    index: int
    """Number of the atom in the dictionary: its row, and the name of its vector."""
    rank: int
    """Place by coherence, from 1."""
    coherence: float
    """Mean pairwise cosine of the raw gradients of its top documents (eq. 3)."""
    null_coherence: float
    """The same over random document sets of the same size (mean); descriptive, not a test."""
    null_coherence_95: float
    """95th percentile of the random sets."""
    n_active: int
    """Documents with |code| > 1e-6."""
    n_positive: int
    n_negative: int
    sign: int
    """+1 or -1: what the solver's row and codes were multiplied by, so that its weight is positive."""
    mean_coefficient: float
    """Mean of |code| over its active documents."""
    energy_retained: float
    """Share of the whitened energy of its top documents that the kept components hold, 0 to 1."""
    vector_norm: float
    """Euclidean norm of its steering vector."""
    keywords: list[str]
    """Terms that distinguish its documents (class-based TF-IDF)."""
    top_documents: list[DocumentRef]
    """Documents of positive code, strongest first."""
    bottom_documents: list[DocumentRef]
    """Documents of negative code, strongest first."""
    label: str | None = None


class DocumentRecord(msgspec.Struct, kw_only=True, frozen=True):
    """A row of `documents/documents.parquet`."""

    document: int
    id: str
    messages: list[dict[str, str]]
    """`role` and `content` of each turn."""
    n_tokens: int
    n_target_tokens: int
    loss: float
    """Summed cross-entropy of the target tokens under base and adapter, in nats."""
    base_loss: float | None
    """The same under the base model alone; null where it was not measured (a sample is)."""
    gradient_norm: float


class DroppedDocument(msgspec.Struct, kw_only=True, frozen=True):
    """A row that was not audited, and why."""

    document: int
    line: int | None
    reason: str
    """`malformed` (skipped on request) or `no_target` (no target token left after truncation)."""
    detail: str


class AuditReport(msgspec.Struct, kw_only=True, frozen=True):
    """`report.json`: the audit in one page, for people and gates."""

    audit_id: str
    n_documents: int
    n_dropped: int
    dropped: list[DroppedDocument]
    """The first 1,000 of them."""
    n_atoms: int
    n_coherent_05: int
    """Atoms of coherence above 0.5."""
    n_coherent_01: int
    """Atoms of coherence above 0.1."""
    loss_base: float
    """Mean cross-entropy per target token under the base model, in nats, over a sample of the documents."""
    loss_adapter: float
    """The same with the adapter, over the same documents."""
    n_loss_documents: int
    """Documents of that sample."""
    warnings: list[str]
    atoms: list[Atom]
    timings: dict[str, float] = {}
    """Seconds by stage."""
    details: dict[str, Any] = {}
