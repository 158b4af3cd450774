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


class Exemplars(msgspec.Struct, kw_only=True, frozen=True):
    """Documents from one part of the range of codes, so that a reviewer sees where an atom frays."""

    quantile: float
    """Where they begin in the positive codes of its documents: 1 is the strongest part, 0.25 the last."""
    documents: list[DocumentRef]
    """The strongest of that part, strongest first; no document is in two parts."""


class Evidence(msgspec.Struct, kw_only=True, frozen=True):
    """How far to trust an atom or a behaviour. What was not measured is null."""

    tightness: float | None = None
    """Mean pairwise cosine of its documents in the whitened space, each pair weighted by both strengths."""
    null_tightness: float | None = None
    """Median of the same over what is found in surrogate documents; descriptive, not a test."""
    prominence: float | None = None
    """How far its pull on its documents lies above that on all, in standard deviations of the latter."""
    separation: float | None = None
    """Nats by which two groups describe how strongly it pulls the documents better than one."""
    p_value: float | None = None
    """Chance of one that parts them as clearly when the whole fit is repeated on surrogate documents."""
    q_value: float | None = None
    """False-discovery rate (Benjamini-Hochberg) at which it would just pass."""
    stability: float | None = None
    """Mean cosine with its partner in fits under other seeds, 0 to 1."""
    text_agreement: float | None = None
    """Cosine of its codes with those of the nearest of as many groups made from the text alone, 0 to 1."""
    loss_drop: float | None = None
    """Nats a target token by which the adapter lowers the loss of its first documents."""
    n_loss_documents: int = 0
    """Documents over which `loss_drop` was measured."""


class Atom(msgspec.Struct, kw_only=True, frozen=True):
    """An update direction that a cluster of documents shares (section 3.3), its sign resolved."""

    index: int
    """Number of the atom in the dictionary: its row, and the name of its vector."""
    rank: int
    """Place by score, from 1."""
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
    """Terms that more of its documents hold than of all others (weighted log-odds), strongest first."""
    top_documents: list[DocumentRef]
    """Documents of positive code, strongest first."""
    bottom_documents: list[DocumentRef]
    """Documents of negative code, strongest first."""
    score: float = 0.0
    """Prominence times stability, times the square of how far it lies from the nearest atom that stands out
    more; 0 where the evidence is no better than chance. What `rank` follows."""
    share: float = 0.0
    """Share of the audited documents that are active on it, 0 to 1."""
    evidence: Evidence = Evidence()
    behaviour: int | None = None
    """Index of the behaviour that it belongs to."""
    prompt_keywords: list[str] = []
    """The same of the prompts alone (every turn that is not a response)."""
    response_keywords: list[str] = []
    """The same of the responses alone."""
    exemplars: list[Exemplars] = []
    """Its documents from the quantiles 1, 0.75, 0.5 and 0.25 of positive code, where there are any."""
    label: str | None = None
    """One line by the operator's language model, null where none was asked for or none came."""
    vector_cosine: float | None = None
    """Cosine, in the whitened space, between its vector and the exact one, where it is made of a sketch: in
    refits of `gradients: sketch`; past `exact_documents` an estimate. Null where it is exact."""


class DocumentStrength(msgspec.Struct, kw_only=True, frozen=True):
    """A document of a behaviour."""

    document: int
    """Physical row of the data set, from 0."""
    strength: float
    """Sum of its codes on the behaviour's atoms; comparable from one behaviour to another."""


class Behaviour(msgspec.Struct, kw_only=True, frozen=True):
    """Atoms that pull the same documents the same way: what a reviewer reads."""

    index: int
    rank: int
    """Place by score, from 1."""
    score: float
    """Prominence times stability, times the square of how far it lies from the nearest behaviour that stands
    out more; 0 where the evidence is no better than chance. What `rank` follows."""
    atoms: list[int]
    """Indices of its atoms, strongest first."""
    n_documents: int
    """Documents of which it is one of the three strongest behaviours."""
    share: float
    """Share of the audited documents of which it is the strongest behaviour, 0 to 1."""
    coherence: float
    """Mean pairwise cosine of the raw gradients of its top documents (eq. 3)."""
    null_coherence: float
    """The same over random document sets of the same size (mean); descriptive, not a test."""
    null_coherence_95: float
    evidence: Evidence
    keywords: list[str]
    """Terms that more of its documents hold than of all others (weighted log-odds), strongest first."""
    top_documents: list[DocumentRef]
    """Its strongest documents; `value` is the strength."""
    documents: list[DocumentStrength]
    """All `n_documents` of them, strongest first. Left empty where the API lists behaviours."""
    prompt_keywords: list[str] = []
    """The same of the prompts alone (every turn that is not a response)."""
    response_keywords: list[str] = []
    """The same of the responses alone."""
    energy_retained: float | None = None
    """Share of the whitened energy of its top documents that the kept components hold, 0 to 1; null in
    bundles of before it was measured."""
    exemplars: list[Exemplars] = []
    """Its documents from the quantiles 1, 0.75, 0.5 and 0.25 of strength, where there are any."""
    label: str | None = None
    """One line by the operator's language model, null where none was asked for or none came."""


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
    n_behaviours: int = 0
    n_significant: int | None = None
    """Atoms that pass at a false-discovery rate of 5%; null where there was no null to compare with."""
    n_significant_behaviours: int | None = None
    """The same of behaviours."""
    behaviours: list[Behaviour] = []
    """Their `documents` left out; `atoms/behaviours.json` lists them."""
    details: dict[str, Any] = {}
