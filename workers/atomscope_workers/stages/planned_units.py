"""How many units some stages of an audit have, as `validate` plans."""

from __future__ import annotations

import math
from collections.abc import Mapping

from atomscope.types.spec import AuditConfig
from atomscope.types.work import Stage
from atomscope_workers.stages.by_parameter import units_along, units_combining
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
    measured: bool = False,
) -> dict[Stage, int]:
    """Units of `PLANNED` stages where they may differ from what is usual; none where there is nothing to do.

    `parameters` are the shapes of the LoRA matrices by name. Of a refit, `whitened` says that its parent has
    the documents whitened as it would have them, and `measured` that it has lambda.
    """
    found: dict[Stage, int] = {}
    if config.preconditioner == "kfac" or measured:
        found["lambdas"] = 0
    if space_of(config, documents) != "directions" or whitened:
        found |= dict.fromkeys(OF_DIRECTIONS, 0)
    else:
        gradient = sum(map(math.prod, parameters.values()))
        units = units_along(shards, len(parameters), gradient, planned_directions(config, documents))
        found |= {"along": units, "along_again": units}
    combined = are_combined(config, documents, refit=refit)
    found["combine"] = units_combining(shards, len(parameters)) if combined else 0
    return found
