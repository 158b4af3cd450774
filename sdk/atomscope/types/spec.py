"""What a client asks for (`AuditConfig`) and what the pipeline is given (`AuditSpec`)."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec

FORMAT_VERSION = 1
"""Version of the audit bundle's layout; a reader refuses a bundle of a higher one."""

Preconditioner = Literal["ekfac-full", "ekfac", "kfac"]
Solver = Literal["torch", "sklearn"]
Codes = Literal["nonnegative", "signed"]
ComputeDtype = Literal["auto", "float32", "bfloat16"]
StoredGradients = Literal["auto", "float32", "bfloat16", "float16", "sketch", "none"]
OnBadRow = Literal["fail", "skip"]
RowForm = Literal["auto", "messages", "conversations", "instruction", "prompt", "text"]
VectorPower = Literal["+1/2", "0", "-1/2"]
ChatTemplate = Annotated[
    str,
    msgspec.Meta(
        max_length=65_536, pattern=r"^(tokenizer|adapter|chatml|llama3|gemma|zephyr|alpaca)$|\{\{|\{%"
    ),
]
"""A name, or the text of a Jinja template, which has `{{` or `{%` in it."""

PositiveInt = Annotated[int, msgspec.Meta(ge=1)]


class AuditConfig(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Settings of one audit. Every field has a default; unknown fields are refused.

    Raises `msgspec.ValidationError` on decoding a value outside the stated range.
    """

    max_length: Annotated[int, msgspec.Meta(ge=8, le=131_072)] = 2048
    """Tokens kept of a document; the rest is cut from its end."""
    on_bad_row: OnBadRow = "fail"
    """Whether a malformed row of the data set fails the audit or is skipped and listed."""
    row_form: RowForm = "auto"
    """Which form rows have where they fit two, by its first field, as Alpaca has a `text` beside its
    `instruction` and `output`. It must be the one that the adapter was trained on; what belongs to others is
    ignored. `auto` takes the form that a row has, and none of two."""
    chat_template: ChatTemplate = "tokenizer"
    """What renders conversations: `tokenizer`, the base model's own; `adapter`, the one that the trainer left
    beside the adapter; `chatml`, `llama3`, `gemma`, `zephyr` or `alpaca`; or a Jinja template as text. It is
    to be the one that the adapter was trained with."""
    dtype: ComputeDtype = "auto"
    """Dtype of the model pass; `auto` is bfloat16 where the hardware has it. Arithmetic on gradients is
    float32."""
    gradients: StoredGradients = "auto"
    """How gradients are kept: in numbers of this dtype, float16 with a scale a document and parameter. `auto`
    is float32 up to 2^31 numbers in all (8 GiB), float16 past that. Under `sketch` and `none` they are not
    kept past the audit's end: there is no `exact` attribution, and no later audit takes its shards. `sketch`
    keeps 4,096 numbers a document (`sketch_columns`) and sums of gradients along 512 directions, from which
    refits with the same whitening are made, their vectors approximate; under `none` there are no refits."""
    token_budget: PositiveInt | Literal["auto"] = 2048
    """Tokens of one micro-batch, padding included; a longer document is a micro-batch alone. `auto` tries
    what the device of `validate` takes, and remembers it: results do not depend on it, the plan does."""
    shard_documents: PositiveInt = 256
    """Most documents of one extraction shard, the unit of work that a worker takes; where they are long, it
    has fewer, so that no shard has half as many tokens again as this many documents have on average."""
    preconditioner: Preconditioner = "ekfac-full"
    """`ekfac-full`: measured lambda, relative damping, every component. `ekfac`: the same, the components of
    largest lambda. `kfac`: the same by products of Kronecker eigenvalues (the paper)."""
    components: PositiveInt = 50
    """Components kept per module by `ekfac` and `kfac` (k of section 3.2)."""
    damping: Annotated[float, msgspec.Meta(gt=0, le=100)] = 0.01
    """Damping of `ekfac` and `ekfac-full`, as a share of the module's mean lambda."""
    exact_documents: PositiveInt = 16_384
    """Documents up to which `ekfac-full` keeps every inner product exactly; past it, each has coordinates
    along the directions in which all vary most."""
    directions: Annotated[int, msgspec.Meta(ge=1, le=16_384)] = 2048
    """How many directions: more tell more documents apart, and take more memory and time. Never more than the
    sketch has columns in which they are first looked for."""
    sketch_columns: Annotated[int, msgspec.Meta(ge=64, le=65_536)] | Literal["auto"] = "auto"
    """Columns of the sketch in which directions are first looked for: more find them better. `auto` is the
    largest power of two, from 4,096 to 16,384, with which all documents are at most 2^29 numbers (2 GiB). Of
    raw gradients, which are sketched for coherence and under `gradients: sketch`, as many columns, and 4,096
    under `auto`."""
    solver: Solver = "torch"
    """`torch`: full-batch alternating minimisation. `sklearn`: `MiniBatchDictionaryLearning` (the paper)."""
    codes: Codes = "nonnegative"
    """Whether a code may be below zero; `sklearn` takes `signed` alone."""
    n_atoms: PositiveInt | Literal["auto"] = "auto"
    """Dictionary size K; `auto` is 2.5 times the square root of the documents, between 8 and 500."""
    pieces: PositiveInt | Literal["auto"] = "auto"
    """Atoms of the over-complete fit, merged into K afterwards; `auto` is a sixth of the documents, at most
    1,000. Never fewer than K; codes of either sign are not merged."""
    alpha: Annotated[float, msgspec.Meta(gt=0)] | Literal["auto"] = "auto"
    """Sparsity penalty of eq. 2; `auto` (of `torch`) is the one that gives `codes_per_document`."""
    codes_per_document: Annotated[float, msgspec.Meta(ge=1, le=100)] = 12.0
    """Codes that a document has on average under `alpha: auto`."""
    fits: Annotated[int, msgspec.Meta(ge=1, le=50)] = 5
    """Fits of the dictionary under different seeds, over which the stability of an atom is measured."""
    surrogates: Annotated[int, msgspec.Meta(ge=0, le=50)] = 5
    """Surrogate data sets, the documents turned about with their mean and covariance kept, on which the whole
    fit is repeated: the null of the p-values. None are given with 0."""
    behaviours: Annotated[int, msgspec.Meta(ge=1, le=500)] | Literal["auto"] = "auto"
    """Most behaviours into which the atoms are grouped; `auto` is the square root of the documents, from 4 to
    40."""
    min_active: Annotated[int, msgspec.Meta(ge=2)] = 5
    """Atoms with fewer active documents are dropped."""
    top_documents: Annotated[int, msgspec.Meta(ge=2, le=1000)] = 20
    """Documents listed for each sign of an atom; coherence is taken over those of the resolved sign."""
    vector_power: VectorPower = "0"
    """Power of (lambda + damping) in the unprojection: `+1/2` is the paper's, `0` leaves it half-whitened."""
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    labels: bool = False
    """Whether the language model that the operator named gives atoms and behaviours a label each; excerpts of
    documents are sent to it. Refused (`labels_unavailable`) where none was named."""

    def __post_init__(self) -> None:
        if isinstance(self.alpha, float) and not math.isfinite(self.alpha):
            raise ValueError(f"`alpha` must be a finite number, not {self.alpha}")
        if self.solver == "sklearn" and self.codes != "signed":
            raise ValueError("the solver `sklearn` gives codes of either sign: `codes` must be `signed`")
        if self.solver == "sklearn" and self.alpha == "auto":
            raise ValueError("the solver `sklearn` needs a number for `alpha`, such as 0.1")


class InputRef(msgspec.Struct, kw_only=True, frozen=True):
    """One input of an audit: where it is and what it was when the audit was made."""

    id: str
    """Resource id (`mdl_`, `ada_`, `ds_`), or `local` for a path of `--local`."""
    location: str
    """Key prefix (a folder) or key (a file) in the object store; an absolute path under `--local`."""
    sha256: str
    """Digest of the content: of the file, or of the sorted lines `sha256  path` of a folder."""
    size: int
    """Bytes."""
    name: str = ""
    """What its owner called it; never used as a path."""


class ParentRef(msgspec.Struct, kw_only=True, frozen=True):
    """The audit whose gradients a refit reads."""

    audit_id: str
    location: str
    """Key prefix of its bundle in the object store; an absolute path on one machine."""


class AuditSpec(msgspec.Struct, kw_only=True, frozen=True):
    """`spec.json`: everything that decides the outcome of an audit, every default filled in."""

    audit_id: str
    project_id: str
    base_model: InputRef
    adapter: InputRef
    dataset: InputRef
    config: AuditConfig
    format_version: int = FORMAT_VERSION
    versions: dict[str, str] = {}
    """Versions of the software that ran it, by distribution name."""
    parent: ParentRef | msgspec.UnsetType = msgspec.UNSET
    """Of a refit: the audit that it is a refit of. Nothing is extracted then."""
    extractions: list[str] | msgspec.UnsetType = msgspec.UNSET
    """Key prefixes of the extractions whose shards an audit of the service may read; none in a bundle."""
