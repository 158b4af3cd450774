"""What steering costs: how far it moves the model's predictions on documents that it has nothing to do with.

    KL = mean over the documents' target tokens of sum_v p(v) (log p(v) - log q(v))

p the unsteered and q the steered model's prediction of the token (teacher-forced), in nats. Log-probabilities
are float32, sums over tokens float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from atomscope.errors import InvalidInput
from atomscope.types.evaluation import Cost
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.evaluation.subject import Subject
from atomscope_workers.pipeline.batches import Batch, collate
from atomscope_workers.pipeline.gradients import document_losses, target_logits
from atomscope_workers.steered import StepOf

HELD_BYTES = 512 * 2**20
"""Most memory for unsteered log-probabilities that are kept; those beyond it are computed anew each time."""

_ROWS = 256
"""Target tokens whose log-probabilities are compared at a time."""

_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class Costs:
    """Of each of D documents."""

    kl: NDArray[np.float64]
    """(D,): sum over its target tokens, nats."""
    loss: NDArray[np.float64]
    """(D,): summed cross-entropy of its target tokens under the steered model, nats."""
    tokens: NDArray[np.int64]
    """(D,): its target tokens."""

    @property
    def cost(self) -> Cost:
        """Over all of them."""
        mean = min(float(self.loss.sum() / self.tokens.sum()), _LARGEST_EXPONENT)
        return Cost(kl=self.mean_kl(len(self.tokens)), perplexity=math.exp(mean))

    def mean_kl(self, first: int) -> float:
        """Nats per target token over the first documents."""
        return float(self.kl[:first].sum() / self.tokens[:first].sum())


class NeutralCost:
    """Measures what steps cost on neutral documents.

    Memory: `HELD_BYTES`, and the logits of two passes over one batch.
    """

    def __init__(
        self, subject: Subject, documents: Sequence[TokenizedDocument], held_bytes: int = HELD_BYTES
    ) -> None:
        """`documents` have a target each. Raises `InvalidInput` (`not_finite`)."""
        self._subject = subject
        self._documents = documents
        self._tokens = np.array([int(item.target_mask.sum()) for item in documents], dtype=np.int64)
        self._held: dict[tuple[int, ...], torch.Tensor] = {}
        self._free = held_bytes
        self.baseline = self.of(None)

    @property
    def n_documents(self) -> int:
        return len(self._documents)

    @property
    def n_tokens(self) -> int:
        """Target tokens of all documents."""
        return int(self._tokens.sum())

    def of(self, step: StepOf | None, first: int | None = None) -> Costs:
        """Of the first documents, or all; one forward pass over them, and a second where not enough is held.

        Raises `InvalidInput`: `not_finite` where the steered model predicts no finite numbers,
        `strength_too_large` as `Subject.moved` does.
        """
        subject = self._subject
        chosen = self._documents[:first]
        kl, loss = np.zeros(len(chosen)), np.zeros(len(chosen))
        batches = subject.batches([item.read for item in chosen], subject.token_budget)
        held = [places for places in batches if tuple(places) in self._held]

        def measure(places: list[int], inner: StepOf | None) -> None:
            subject.checkpoint()
            batch = collate([chosen[place] for place in places], subject.lora.device)
            before = self._unsteered(tuple(places), batch)
            with subject.moved(inner):
                after = target_logits(subject.lora, batch)
            kl[places], loss[places] = _compared(before, after, batch)

        with torch.no_grad():
            with subject.moved(step):
                for places in held:
                    measure(places, None)
            for places in batches:
                if places not in held:
                    measure(places, step)
        if not (np.isfinite(kl).all() and np.isfinite(loss).all()):
            raise InvalidInput("not_finite", "the model predicts no finite numbers on neutral documents")
        return Costs(kl.clip(min=0), loss, self._tokens[:first])

    def _unsteered(self, places: tuple[int, ...], batch: Batch) -> torch.Tensor:
        """Log-probabilities (n, vocabulary) of the unsteered model, float32; held ones on the CPU."""
        if places in self._held:
            return self._held[places]
        found = torch.log_softmax(target_logits(self._subject.lora, batch).float(), -1)
        size = found.numel() * found.element_size()
        if size <= self._free:
            self._free -= size
            self._held[places] = found.cpu()
        return found


def _compared(
    before: torch.Tensor, after: torch.Tensor, batch: Batch
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums over each document's targets, float64 (B,): of the divergence, and of the steered loss."""
    count = len(batch.documents)
    kl, loss = (torch.zeros(count, dtype=torch.float64, device=after.device) for _ in range(2))
    for start in range(0, len(after), _ROWS):
        part = slice(start, start + _ROWS)
        p, q = before[part].to(after.device), torch.log_softmax(after[part].float(), -1)
        owners = batch.owners[part]
        kl.index_add_(0, owners, (p.exp() * (p - q)).sum(-1).double())
        loss.index_add_(0, owners, -q.gather(1, batch.targets[part, None])[:, 0].double())
    return kl.cpu().numpy(), loss.cpu().numpy()


def mean_log_probabilities(
    subject: Subject, documents: Sequence[TokenizedDocument], step: StepOf | None
) -> NDArray[np.float64]:
    """Mean log-probability per target token of each document (D,), nats, a step away.

    Raises `InvalidInput` as `NeutralCost.of` does.
    """
    found = np.zeros(len(documents))
    lengths = [item.read for item in documents]
    with subject.moved(step):
        for places in subject.batches(lengths, subject.token_budget):
            subject.checkpoint()
            chosen = [documents[place] for place in places]
            losses = document_losses(subject.lora, collate(chosen, subject.lora.device)).cpu().numpy()
            found[places] = -losses / np.array([int(item.target_mask.sum()) for item in chosen])
    if not np.isfinite(found).all():
        raise InvalidInput("not_finite", "the model predicts no finite numbers on documents")
    return found
