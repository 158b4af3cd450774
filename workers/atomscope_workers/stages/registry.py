"""Which function runs which stage."""

from __future__ import annotations

from atomscope.types.work import Stage
from atomscope_workers.stages import (
    along,
    characterise,
    combine,
    curvature,
    dictionary,
    directions,
    eigenbases,
    evidence,
    extract,
    lambdas,
    project,
    report,
    validate,
    vectors,
)
from atomscope_workers.stages.context import StageFunction

STAGE_FUNCTIONS: dict[Stage, StageFunction] = {
    "validate": validate.run,
    "extract": extract.run,
    "eigenbases": eigenbases.run,
    "lambdas": lambdas.run,
    "curvature": curvature.run,
    "project": project.run,
    "directions": directions.run,
    "along": along.run,
    "directions_again": directions.run,
    "along_again": along.run,
    "dictionary": dictionary.run,
    "evidence": evidence.run,
    "combine": combine.run,
    "vectors": vectors.run,
    "characterise": characterise.run,
    "report": report.run,
}
