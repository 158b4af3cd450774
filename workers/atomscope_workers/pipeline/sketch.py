"""A seeded sketch of gradients, whitened or raw: every coordinate, in a fixed number of columns.

A count sketch (Charikar et al. 2002; Pham and Pagh 2013): each coordinate is added to one column, with a
random sign. Inner products are kept in expectation, with an error that falls as one over the square root of
the columns. The same seed gives the same sketch for every shard, so shards can be done anywhere and put
together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from atomscope_workers.pipeline.curvature import ModuleCurvature
from atomscope_workers.pipeline.gram import blocks
from atomscope_workers.pipeline.seeds import seeded

BASIS_SUMS = 512
"""Directions of the documents along which `gradients: sketch` keeps sums of gradients, or as many as they
span: what vectors of refits are made of (ADR 18 has how near they come)."""


def sketch_rows(
    curvature: Sequence[ModuleCurvature],
    load: Callable[[str], torch.Tensor],
    documents: int,
    *,
    columns: int,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sketched rows (n, columns) float32 of one shard, and the exact squared norms (n,) float64 of its rows.

    `load(name)` gives the float32 gradients (n, d_out, d_in) of a module on the device that does the work.
    """
    rows = torch.zeros(documents, columns)
    energy = torch.zeros(documents, dtype=torch.float64)
    for module in curvature:
        if not module.has_energy:
            continue
        gradients = load(module.name)
        places, signs = _hashes(module.name, module.rotation.shape, columns, seed)
        rows = rows.to(gradients.device)
        for block in blocks([module], documents):
            whitened = block.whiten(gradients)
            target = places[block.part].flatten().to(gradients.device)
            rows.index_add_(1, target, whitened * signs[block.part].flatten().to(gradients.device))
            energy += whitened.double().square().sum(1).cpu()
    return rows.cpu(), energy


def sketch_raw(
    names: Iterable[str], load: Callable[[str], torch.Tensor], documents: int, *, columns: int, seed: int
) -> torch.Tensor:
    """Sketched rows (n, columns) float32 of the raw gradients of one shard; `load` as in `sketch_rows`."""
    rows = torch.zeros(documents, columns)
    for name in names:
        gradients = load(name)
        places, signs = (
            part.to(gradients.device) for part in _hashes(name, gradients.shape[1:], columns, seed)
        )
        rows = rows.to(gradients.device)
        rows.index_add_(1, places.flatten(), (gradients * signs).flatten(1))
    return rows.cpu()


def _hashes(name: str, shape: Sequence[int], columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Column int64 and sign float32 of every coordinate of a parameter, (d_out, d_in) each."""
    generator = seeded(seed, f"sketch/{name}")
    places = torch.randint(0, columns, shape, generator=generator)
    return places, torch.randint(0, 2, shape, generator=generator).float() * 2 - 1
