"""How many units the stages of an audit have, where that is neither one nor one a shard."""

from __future__ import annotations

import math
from collections.abc import Mapping

from atomscope.types.spec import AuditConfig
from atomscope.types.work import Stage
from atomscope_workers.stages.along import units_along
from atomscope_workers.stages.combine import are_combined
from atomscope_workers.stages.sketch_columns import planned_directions
from atomscope_workers.stages.space import space_of

OF_DIRECTIONS: tuple[Stage, ...] = ("directions", "along", "directions_again", "along_again")


def planned_units(
    config: AuditConfig,
    documents: int,
    shards: int,
    parameters: Mapping[str, tuple[int, int]],
    *,
    refit: bool = False,
    whitened: bool = False,
) -> dict[Stage, int]:
    """Stage -> units, none of a stage with nothing to do.

    `parameters` are the shapes of the LoRA matrices by name; `whitened` says that a refit's parent holds the
    whitened documents of the refit.
    """
    found: dict[Stage, int] = {}
    if space_of(config, documents) != "directions" or whitened:
        found |= dict.fromkeys(OF_DIRECTIONS, 0)
    else:
        gradient = sum(map(math.prod, parameters.values()))
        units = units_along(shards, len(parameters), gradient, planned_directions(config, documents))
        found |= {"along": units, "along_again": units}
    if not are_combined(config, documents, refit=refit):
        found["combine"] = 0
    return found
