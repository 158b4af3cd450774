"""`token_budget: auto`: the budget that this device takes, tried once and remembered.

It is remembered in the worker's cache, in a small JSON file for each base model, shapes of the adapter,
device and its memory, compute dtype, and range of the documents' lengths in powers of two. A file that cannot
be used is told of in the log and made anew.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import torch

from atomscope.errors import InvalidInput
from atomscope_workers.memory import free_bytes, measured_peak
from atomscope_workers.models.lora import LoraModel
from atomscope_workers.pipeline.batches import collate
from atomscope_workers.pipeline.budget import LEAST, Attempt, largest_budget, probe_documents
from atomscope_workers.pipeline.factors import FactorSums
from atomscope_workers.pipeline.gradients import gradient_pass
from atomscope_workers.stages.determinism import deterministic
from atomscope_workers.worker_cache import cache_folder

logger = logging.getLogger(__name__)

MOST = {"cpu": 4096, "cuda": 131_072}
"""Largest budget that is tried; on a CPU larger batches are no faster."""
SHARE = {"cpu": 0.5, "cuda": 0.8}
"""Of what is free on a host, others may want the rest; of what a GPU took, its memory breaks into pieces."""
_VERSION = 1


class _Facts(msgspec.Struct, kw_only=True, frozen=True):
    """What a budget is found for."""

    base_model: str
    shapes: str
    """Digest of the adapter's names and shapes."""
    device: str
    memory: int
    compute_dtype: str
    longest: int
    shortest: int
    """Of the documents, rounded to powers of two: up and down."""
    shard_documents: int
    torch: str
    version: int = _VERSION


class _Remembered(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    facts: _Facts
    budget: int


def found_budget(
    lora: LoraModel,
    base_sha256: str,
    lengths: Collection[int],
    shard_documents: int,
    checkpoint: Callable[[], None],
    attempt: Attempt | None = None,
) -> int:
    """The budget remembered for this model, device and lengths, or the one that trying finds.

    `attempt` takes the place of trying on the device. Raises `InvalidInput` (`not_enough_memory`) when the
    smallest budget does not fit.
    """
    facts = _facts(lora, base_sha256, lengths, shard_documents)
    path = cache_folder() / "token-budgets" / f"{hashlib.sha256(msgspec.json.encode(facts)).hexdigest()}.json"
    remembered = _read(path, facts)
    if remembered is not None:
        return remembered
    kind = lora.device.type
    share, most = SHARE[kind], MOST[kind]

    def room() -> int:
        return int(free_bytes(lora.device) * share)

    found = largest_budget(
        attempt or _on_device(lora, facts, checkpoint), most=most, room=room if kind == "cpu" else None
    )
    if found is None:
        raise InvalidInput(
            "not_enough_memory",
            f"a micro-batch of {LEAST} tokens does not fit: {free_bytes(lora.device) / 2**30:.2f} GiB are "
            f"free on {facts.device}. What helps: more memory, a smaller `max_length`, `dtype: bfloat16`",
        )
    if kind == "cuda" and found < most:
        found = max(LEAST, int(found * share))
    _write(path, _Remembered(facts=facts, budget=found))
    logger.info("%s takes %d tokens a micro-batch", facts.device, found)
    return found


def _facts(lora: LoraModel, base_sha256: str, lengths: Collection[int], shard_documents: int) -> _Facts:
    cuda = lora.device.type == "cuda"
    properties = torch.cuda.get_device_properties(lora.device) if cuda else None
    shapes = msgspec.json.encode([(item.name, item.shape) for item in lora.parameters])
    return _Facts(
        base_model=base_sha256,
        shapes=hashlib.sha256(shapes).hexdigest(),
        device=properties.name if properties is not None else "cpu",
        memory=properties.total_memory if properties is not None else psutil.virtual_memory().total,
        compute_dtype=str(lora.dtype).removeprefix("torch."),
        longest=1 << (max(lengths) - 1).bit_length(),
        shortest=1 << (min(lengths).bit_length() - 1),
        shard_documents=shard_documents,
        torch=str(torch.__version__),
    )


def _on_device(lora: LoraModel, facts: _Facts, checkpoint: Callable[[], None]) -> Attempt:
    """Runs a budget's batches of the longest and of the shortest documents, as extraction does."""
    embeddings: Any = lora.base.get_input_embeddings()
    vocabulary: int = embeddings.weight.shape[0]
    positions = getattr(lora.base.config, "max_position_embeddings", facts.longest)
    longest = min(facts.longest, positions) if isinstance(positions, int) else facts.longest
    factors = FactorSums()

    def attempt(tokens: int) -> int:
        taken = 0
        for length in sorted({longest, max(2, facts.shortest)}):
            checkpoint()
            documents = probe_documents(tokens, length, vocabulary, facts.shard_documents)
            try:
                with (
                    measured_peak(lora.device) as peak,
                    deterministic(lora.device),
                    gradient_pass(lora, factors) as differentiate,
                ):
                    before = [  # the gradients of the batch before, which are being written meanwhile
                        torch.ones(len(documents), *item.shape, device=lora.device)
                        for item in lora.parameters
                    ]
                    differentiate(collate(documents, lora.device))
                    del before
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                raise
            taken = max(taken, peak.bytes)
        return taken

    return attempt


def _read(path: Path, facts: _Facts) -> int | None:
    """What is remembered of `facts`; None for nothing, and for what cannot be used."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("the token budget in %s cannot be read: %s", path, error)
        return None
    try:
        found = msgspec.json.decode(data, type=_Remembered)
    except msgspec.MsgspecError as error:
        logger.warning("the token budget in %s is damaged and is found anew: %s", path, error)
        return None
    if found.facts != facts or not 1 <= found.budget <= max(MOST.values()):
        logger.warning("the token budget in %s is of something else and is found anew", path)
        return None
    return found.budget


def _write(path: Path, found: _Remembered) -> None:
    """Remember it, whole or not at all; a cache that cannot be written to costs a probe the next time."""
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
        temporary.replace(path)
    except OSError as error:
        logger.warning("the token budget could not be kept in %s: %s", path, error)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
