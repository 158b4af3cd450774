"""Room on disk for gradients and products of them, looked at before the first is written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from atomscope.errors import InvalidInput
from atomscope.text import counted
from atomscope.types.bundle import Plan, StoredShard
from atomscope.types.work import Stage
from atomscope_workers.models.device_memory import size_text
from atomscope_workers.pipeline.storage import gradient_bytes
from atomscope_workers.stages.context import StageContext
from atomscope_workers.stages.inputs import plan_gradient_dtype
from atomscope_workers.stages.raw_sketch import compares_sketches
from atomscope_workers.stages.retention import keeps_gradients
from atomscope_workers.stages.shard_keys import to_extract
from atomscope_workers.stages.sketch_columns import planned_directions


def require_disk(
    ctx: StageContext,
    plan: Plan,
    stored: Sequence[StoredShard],
    parameters: int,
    modules: int,
    units: Mapping[Stage, int],
) -> None:
    """Raise `InvalidInput` (`not_enough_disk`) where gradients, or products of them, certainly do not fit.

    Outputs on this machine's disk take all that is not stored yet, and where they are copied there, a unit's
    scratch a shard beside; a shard cache on another disk is copied from, and to. Of those that go over a
    network a unit holds a shard's at a time, or, where documents are compared exactly, all.
    `stored` are the plan's shards as far as they are kept; `parameters` is d, of so many `modules`; `units`
    tells how many leave products with directions, which on this machine's disk lie there until the end.
    """
    new = [len(shard.documents) for shard in to_extract(plan, stored)]
    if ctx.outputs_folder is not None:
        wanted = {ctx.outputs_folder: sum(new)}
        if ctx.shard_cache is not None and not _one_disk(ctx.shard_cache, ctx.outputs_folder):
            wanted = {ctx.outputs_folder: plan.n_documents, ctx.shard_cache: sum(new)}
        if new and ctx.copies_outputs and _one_disk(ctx.scratch, ctx.outputs_folder):
            wanted[ctx.outputs_folder] += min(new)  # the last one lies beside all, whichever that is
        elif new and ctx.copies_outputs:
            wanted[ctx.scratch] = max(new)
    elif compares_sketches(ctx, plan.n_documents):
        wanted = {ctx.scratch: max(len(shard.documents) for shard in plan.shards)}
    else:
        wanted = {ctx.scratch: plan.n_documents}
    dtype = plan_gradient_dtype(plan)
    chosen = ctx.parent is None and keeps_gradients(ctx.spec.config)
    products = 4 * plan.n_documents * planned_directions(ctx.spec.config, plan.n_documents)
    products *= units.get("along", 0) + units.get("along_again", 0)
    smaller = ["`gradients: float16`"] if dtype != "float16" and chosen else []
    for folder, documents in wanted.items():
        gradients = gradient_bytes(dtype, documents, parameters, modules)
        more = products if folder == ctx.outputs_folder else 0
        free = shutil.disk_usage(_existing(folder)).free
        if gradients + more > free:
            takes, helps = list[str](), ["more room"]
            if documents:
                whose = counted(documents, "document")
                takes.append(f"the gradients of {whose} take {size_text(gradients)} in {dtype}")
                helps += [*smaller, "an adapter of fewer or narrower layers"]
            if more:
                takes.append(f"products with directions take {size_text(more)}")
                helps.append("fewer `directions`")
            raise InvalidInput(
                "not_enough_disk",
                f"{', '.join(takes)}, and {size_text(free)} are free where they are written. "
                f"What helps: {', '.join(helps)}",
            )


def _one_disk(one: Path, other: Path) -> bool:
    return _existing(one).stat().st_dev == _existing(other).stat().st_dev


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
