"""Splitting a batch whose documents a model would not read as it reads each alone."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from atomscope_workers.pipeline.batches import Batch


def split_at_length(batch: Batch, boundary: int | None) -> list[tuple[torch.Tensor, Batch]]:
    """The batch as parts of documents of at most `boundary` tokens and of longer ones.

    Each part comes with its rows of `batch`, int64. A part of short documents is as wide as what is read of
    them; one of long documents is wider than the boundary, whatever is read. A batch of short documents, or
    with no boundary at all, is one part: itself.
    """
    every = torch.arange(len(batch.lengths), device=batch.lengths.device)
    long = torch.zeros_like(every, dtype=torch.bool) if boundary is None else batch.lengths > boundary
    if boundary is None or not bool(long.any()):
        return [(every, batch)]
    read = batch.attention_mask.sum(1)
    parts = [(every[~long], 1), (every[long], boundary + 1)]
    return [
        (rows, _part(batch, rows, max(least, int(read[rows].max())))) for rows, least in parts if len(rows)
    ]


def _part(batch: Batch, rows: torch.Tensor, width: int) -> Batch:
    """The documents of `rows`, rising, in `width` tokens, which hold what is read of each."""
    before = batch.input_ids.shape[1]
    ids, mask = (
        pad(tensor[rows, :width], (0, max(0, width - before)))
        for tensor in (batch.input_ids, batch.attention_mask)
    )
    row_of = torch.full((len(batch.documents),), -1, dtype=torch.int64, device=rows.device)
    row_of[rows] = torch.arange(len(rows), device=rows.device)
    owners = row_of[batch.owners]
    kept = owners >= 0
    columns = batch.predictors[kept] % before
    return Batch(
        documents=tuple(batch.documents[row] for row in rows.tolist()),
        lengths=batch.lengths[rows],
        input_ids=ids,
        attention_mask=mask,
        position_ids=torch.arange(width, device=rows.device).expand(len(rows), width),
        real=mask.flatten().nonzero().flatten(),
        predictors=owners[kept] * width + columns,
        targets=batch.targets[kept],
        owners=owners[kept],
    )
