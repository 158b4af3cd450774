"""Token ids of several documents as one padded batch, with the places of their targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from atomscope_workers.datasets.documents import TokenizedDocument


@dataclass(frozen=True)
class Batch:
    """What is read of B documents, padded on the right to T tokens, with n targets; tensors on one device."""

    documents: tuple[int, ...]
    """Physical rows, in batch order."""
    input_ids: torch.Tensor
    """int64 (B, T); padding repeats token 0, which no real token can see."""
    attention_mask: torch.Tensor
    """int64 (B, T): 1 where the token is real."""
    position_ids: torch.Tensor
    """int64 (B, T): 0 to T - 1."""
    real: torch.Tensor
    """int64 (tokens,): flat places of the real tokens in (B, T)."""
    predictors: torch.Tensor
    """int64 (n,): flat places in (B, T) of the tokens whose logits predict a target."""
    targets: torch.Tensor
    """int64 (n,): the token ids that they should predict."""
    owners: torch.Tensor
    """int64 (n,): batch row of each target, never falling."""


def collate(documents: Sequence[TokenizedDocument], device: torch.device) -> Batch:
    """Lay out for one forward pass what is read of `documents`, padded on the right.
    Raises `ValueError` when there is none, one has no target, or one has a target at its first token, which
    nothing predicts.
    """
    if not documents:
        raise ValueError("a batch needs at least one document")
    width = max(item.read for item in documents)
    ids = np.zeros((len(documents), width), dtype=np.int64)
    mask = np.zeros((len(documents), width), dtype=np.int64)
    predictors: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    for row, item in enumerate(documents):
        places = np.flatnonzero(item.target_mask)
        if not places.size or places[0] == 0:
            raise ValueError(f"document {item.document} has no target, or one at its first token")
        ids[row, : item.read] = item.input_ids[: item.read]
        mask[row, : item.read] = 1
        predictors.append(row * width + places - 1)
        targets.append(item.input_ids[places].astype(np.int64))
        owners.append(np.full(places.size, row, dtype=np.int64))

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    return Batch(
        documents=tuple(item.document for item in documents),
        input_ids=tensor(ids),
        attention_mask=tensor(mask),
        position_ids=torch.arange(width, device=device).expand(len(documents), width),
        real=tensor(np.flatnonzero(mask)),
        predictors=tensor(np.concatenate(predictors)),
        targets=tensor(np.concatenate(targets)),
        owners=tensor(np.concatenate(owners)),
    )
