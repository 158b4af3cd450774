"""Splitting a batch whose documents a model would not read as it reads each alone."""

from __future__ import annotations

import torch

from atomscope_workers.pipeline.batches import Batch


def split_at_length(batch: Batch, boundary: int | None) -> list[tuple[torch.Tensor, Batch]]:
    """The batch as parts of documents of at most `boundary` tokens and of longer ones.

    Each part comes with its rows of `batch`, int64, and is no wider than its longest document. A batch on one
    side of the boundary, or with no boundary at all, is one part: itself.
    """
    lengths = batch.attention_mask.sum(1)
    every = torch.arange(len(lengths), device=lengths.device)
    if boundary is None or batch.input_ids.shape[1] <= boundary:
        return [(every, batch)]
    short = lengths <= boundary
    if not bool(short.any()):
        return [(every, batch)]
    chosen = [every[short], every[~short]]
    return [(rows, _part(batch, rows, int(lengths[rows].max()))) for rows in chosen if len(rows)]


def _part(batch: Batch, rows: torch.Tensor, width: int) -> Batch:
    """The documents of `rows`, rising, cut to `width` tokens, which hold all of each."""
    mask = batch.attention_mask[rows, :width]
    row_of = torch.full((len(batch.documents),), -1, dtype=torch.int64, device=rows.device)
    row_of[rows] = torch.arange(len(rows), device=rows.device)
    owners = row_of[batch.owners]
    kept = owners >= 0
    columns = batch.predictors[kept] % batch.input_ids.shape[1]
    return Batch(
        documents=tuple(batch.documents[row] for row in rows.tolist()),
        input_ids=batch.input_ids[rows, :width],
        attention_mask=mask,
        position_ids=batch.position_ids[rows, :width],
        real=mask.flatten().nonzero().flatten(),
        predictors=owners[kept] * width + columns,
        targets=batch.targets[kept],
        owners=owners[kept],
    )
