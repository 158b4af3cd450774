"""What a pass may hold on this device: the token budget of `auto`, and whether layers are recomputed.

Tried once and remembered: layers as they are first, and, where no batch fits so, recomputed. A budget that
is given is tried on CUDA alone: a CPU has no allocator that would say no. What is found lies in the worker's
cache, in a small JSON file for each base model, shapes of the adapter, device and its memory, compute dtype,
and range of the documents' lengths in powers of two. A file that cannot be used is told of in the log and
made anew.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil
import torch

from atomscope.errors import InvalidInput
from atomscope_workers.models.causal_attention import KEPT
from atomscope_workers.models.device_memory import free_bytes, measured_peak, size_text
from atomscope_workers.models.lora import LoraModel
from atomscope_workers.pipeline.batches import collate
from atomscope_workers.pipeline.budget import LEAST, largest_budget, probe_documents, round_budget
from atomscope_workers.pipeline.factors import FactorSums
from atomscope_workers.pipeline.gradients import gradient_pass
from atomscope_workers.stages.determinism import deterministic
from atomscope_workers.worker_cache import cache_folder

logger = logging.getLogger(__name__)

MOST = {"cpu": 4096, "cuda": 131_072}
"""Largest budget that is tried; on a CPU larger batches are no faster."""
SHARE = {"cpu": 0.5, "cuda": 0.8}
"""Of what is free on a host, others may want the rest; of what a GPU took, its memory breaks into pieces."""
_VERSION = 5

Attempt = Callable[[int, bool], int]
"""Runs batches of so many tokens, layers recomputed or not; as `pipeline.budget.Attempt`."""


@dataclass(frozen=True)
class PassSize:
    """What a pass may hold."""

    token_budget: int
    recompute: bool


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
    wanted: int | Literal["auto"]
    torch: str
    version: int = _VERSION


class _Remembered(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    facts: _Facts
    budget: int
    recompute: bool


def found_size(
    lora: LoraModel,
    wanted: int | Literal["auto"],
    base_sha256: str,
    lengths: Collection[int],
    shard_documents: int,
    checkpoint: Callable[[], None],
    attempt: Attempt | None = None,
) -> PassSize:
    """What is remembered for this model, device and lengths, or what trying finds.

    `attempt` takes the place of trying on the device. Raises `InvalidInput` (`not_enough_memory`) when the
    budget that is wanted, or the smallest, does not fit.
    """
    kind = lora.device.type
    if wanted != "auto" and kind == "cpu":
        return PassSize(wanted, lora.offloaded)
    facts = _facts(lora, wanted, base_sha256, lengths, shard_documents)
    path = cache_folder() / "token-budgets" / f"{hashlib.sha256(msgspec.json.encode(facts)).hexdigest()}.json"
    remembered = _read(path, facts)
    if remembered is not None:
        return remembered
    trying = attempt or _on_device(lora, facts, checkpoint)
    for recompute in (True,) if lora.offloaded else (False, True):
        budget = _largest(partial(_tried, trying, recompute), wanted, lora.device)
        if budget is not None:
            found = PassSize(budget, recompute)
            _write(path, _Remembered(facts=facts, budget=budget, recompute=recompute))
            how = ", its layers recomputed" if recompute else ""
            logger.info("%s takes %d tokens a micro-batch%s", facts.device, budget, how)
            return found
    least = LEAST if wanted == "auto" else wanted
    raise InvalidInput(
        "not_enough_memory",
        f"a micro-batch of {least} tokens does not fit, even with its layers recomputed: "
        f"{size_text(free_bytes(lora.device))} are free on {facts.device}. What helps: more memory, a "
        "smaller `token_budget` or `max_length`, `dtype: bfloat16`",
    )


def _tried(attempt: Attempt, recompute: bool, tokens: int) -> int:
    return attempt(tokens, recompute)


def _largest(
    attempt: Callable[[int], int], wanted: int | Literal["auto"], device: torch.device
) -> int | None:
    """The budget that is wanted, or the largest that this device takes; None where it takes none."""
    if wanted != "auto":
        try:
            attempt(wanted)
        except torch.OutOfMemoryError:
            return None
        return wanted
    kind = device.type
    share, most = SHARE[kind], MOST[kind]

    def room() -> int:
        return int(free_bytes(device) * share)

    found = largest_budget(attempt, most=most, room=room if kind == "cpu" else None)
    if found is None or found == most:
        return found
    return round_budget(int(found * share) if kind == "cuda" else found)


def _facts(
    lora: LoraModel,
    wanted: int | Literal["auto"],
    base_sha256: str,
    lengths: Collection[int],
    shard_documents: int,
) -> _Facts:
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
        wanted=wanted,
        torch=str(torch.__version__),
    )


def _on_device(lora: LoraModel, facts: _Facts, checkpoint: Callable[[], None]) -> Attempt:
    """Runs a budget's batches of the longest and of the shortest documents, as extraction does.

    And on a CPU of the longest whose attention weights are kept, where longer ones are among them.
    """
    embeddings: Any = lora.base.get_input_embeddings()
    vocabulary: int = embeddings.weight.shape[0]
    positions = getattr(lora.base.config, "max_position_embeddings", facts.longest)
    longest = min(facts.longest, positions) if isinstance(positions, int) else facts.longest
    lengths = {longest, facts.shortest}
    if lora.device.type == "cpu" and min(lengths) < KEPT < longest:
        lengths.add(KEPT)
    factors = FactorSums()

    def attempt(tokens: int, recompute: bool) -> int:
        taken = 0
        for length in sorted(lengths):
            checkpoint()
            documents = probe_documents(tokens, length, vocabulary, facts.shard_documents)
            try:
                with (
                    measured_peak(lora.device) as peak,
                    deterministic(lora.device),
                    gradient_pass(lora, factors, recompute=recompute) as differentiate,
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


def _read(path: Path, facts: _Facts) -> PassSize | None:
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
    if found.facts != facts or found.budget < 1:
        logger.warning("the token budget in %s is of something else and is found anew", path)
        return None
    return PassSize(found.budget, found.recompute)


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
