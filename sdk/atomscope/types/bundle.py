"""The manifest of an audit bundle and the plan of an audit."""

from __future__ import annotations

import msgspec

from atomscope.types.spec import FORMAT_VERSION


class FileEntry(msgspec.Struct, kw_only=True, frozen=True):
    """One file of a bundle."""

    path: str
    """POSIX path within the bundle."""
    size: int
    sha256: str


class Manifest(msgspec.Struct, kw_only=True, frozen=True):
    """`manifest.json`, written last: its presence is the commit of the bundle."""

    audit_id: str
    created_at: str
    """RFC 3339, UTC."""
    files: list[FileEntry]
    """Sorted by path; the manifest itself is not listed."""
    format_version: int = FORMAT_VERSION
    kind: str = "audit"
    parent: str | msgspec.UnsetType = msgspec.UNSET
    """Of a refit: the id of the audit whose gradients it read."""
    shared: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    """Path -> key in the service's store, of files that lie there once for several bundles. A copy of the
    bundle has them at their path, or does without."""


class StoredFile(msgspec.Struct, kw_only=True, frozen=True):
    """Size and digest of one file of a stored shard."""

    size: int
    sha256: str


class StoredShard(msgspec.Struct, kw_only=True, frozen=True):
    """`work/shards.json` lists one for each shard of the plan."""

    name: str
    """First row, number of documents and key, as among the shards of an extraction."""
    location: str | None = None
    """Key prefix of the stored shard that is read; None for one that the audit extracts itself."""


class ShardPlan(msgspec.Struct, kw_only=True, frozen=True):
    """The documents of one shard and how they are batched."""

    index: int
    documents: list[int]
    """Physical rows, rising; the rows of the shard's gradient file, in this order."""
    micro_batches: list[list[int]]
    """The same rows, grouped by length under the token budget; run in this order."""
    n_tokens: int
    """Tokens that are run: of each document those before its last target."""


class Plan(msgspec.Struct, kw_only=True, frozen=True):
    """`plan.json`: shards and micro-batches, fixed once, so that one plan gives one result."""

    n_rows: int
    """Rows of the data set, those that were dropped included."""
    n_documents: int
    n_tokens: int
    """Tokens that are run, padding aside."""
    n_target_tokens: int
    token_budget: int
    shards: list[ShardPlan]
    compute_dtype: str
    """`float32` or `bfloat16`: `auto` was resolved on the machine that made the plan."""
    device_kind: str
    """`cpu` or `cuda`."""
    gradient_dtype: str = "float32"
    """`float32`, `bfloat16` or `float16`: in what the shards hold gradients, `auto` resolved."""
    recompute: bool = False
    """Whether a pass keeps the inputs of the model's layers alone and runs these twice, because all that
    they compute does not fit; results are the same to the bit."""
