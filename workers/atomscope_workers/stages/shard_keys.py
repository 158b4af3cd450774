"""The key of a shard: a digest of everything that decides the bits of its gradients, losses and factor sums.

A setting is in it by what it did to the documents and their batches. K, alpha, seeds and the preconditioner
did nothing to them, so that audits which differ in these alone have the same keys.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from atomscope.bundle import layout
from atomscope.types.bundle import Plan, ShardPlan, StoredShard
from atomscope.types.spec import AuditSpec
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.pipeline.storage import GradientDtype
from atomscope_workers.stages.context import KnownShard
from atomscope_workers.stages.versions import software_versions

VERSION = 3
"""Of the files of a stored shard, and of the arithmetic behind them."""
_NAME = re.compile(r"(\d{10})-(\d{6})-[0-9a-f]{64}")


def extraction_context(
    spec: AuditSpec, compute_dtype: str, device_kind: str, gradient_dtype: GradientDtype
) -> bytes:
    """What the shards of an audit have in common."""
    return msgspec.json.encode(
        [
            VERSION,
            spec.base_model.sha256,
            spec.adapter.sha256,
            compute_dtype,
            device_kind,
            gradient_dtype,
            sorted(software_versions().items()),
        ]
    )


def shard_name(
    context: bytes,
    documents: Sequence[int],
    batches: Sequence[Sequence[int]],
    tokens: Mapping[int, TokenizedDocument],
) -> str:
    """First row, number of documents and key of a shard."""
    digest = hashlib.sha256()
    # Each part is told apart from the next by its length, so that no two shards give one text.
    for part in (context, msgspec.json.encode([documents, batches])):
        digest.update(len(part).to_bytes(8, "big") + part)
    for row in documents:
        document = tokens[row]
        ids = np.ascontiguousarray(document.input_ids, dtype="<i8")
        mask = np.ascontiguousarray(document.target_mask, dtype=np.uint8)
        digest.update(len(ids).to_bytes(8, "big") + ids.tobytes() + mask.tobytes())
    return f"{documents[0]:010d}-{len(documents):06d}-{digest.hexdigest()}"


class KnownRuns:
    """The `StoredRuns` of a plan: the shards that are known, judged by their keys."""

    def __init__(
        self, context: bytes, tokens: Mapping[int, TokenizedDocument], known: Iterable[KnownShard]
    ) -> None:
        self._context = context
        self._tokens = tokens
        self._locations: dict[str, str] = {}
        self._counts: dict[int, set[int]] = {}
        for shard in known:
            match = _NAME.fullmatch(shard.name)
            if match is not None:
                self._locations.setdefault(shard.name, shard.location)
                self._counts.setdefault(int(match[1]), set()).add(int(match[2]))

    def counts(self, row: int) -> Iterable[int]:
        """Sizes of the known shards that begin at a physical row."""
        return self._counts.get(row, ())

    def holds(self, documents: list[int], batches: list[list[int]]) -> bool:
        """Whether the key of these rows is that of a known shard."""
        return self.stored(documents, batches).location is not None

    def stored(self, documents: Sequence[int], batches: Sequence[Sequence[int]]) -> StoredShard:
        """The name of a shard of these rows, and where it lies if it is known."""
        name = shard_name(self._context, documents, batches, self._tokens)
        return StoredShard(name=name, location=self._locations.get(name))


def extractions_of(shards: Iterable[StoredShard]) -> list[str]:
    """Ids of the audits whose extractions hold these shards; an empty one for the audit itself.

    Folders of a cache on this machine, which no key of a store looks like, are no audit's.
    """
    locations = {shard.location for shard in shards if not (shard.location or "").startswith("/")}
    return sorted({"" if at is None else layout.extraction_of(at) for at in locations})


def to_extract(plan: Plan, stored: Sequence[StoredShard]) -> list[ShardPlan]:
    """The shards of a plan that are not stored; all where `stored` is empty, as gradients are not kept then.

    Raises `ValueError` where it is of another plan.
    """
    if not stored:
        return list(plan.shards)
    pairs = zip(plan.shards, stored, strict=True)
    return [shard for shard, at in pairs if at.location is None]
