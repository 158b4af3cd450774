"""Which function runs which stage."""

from __future__ import annotations

from atomscope.types.work import Stage
from atomscope_workers.stages import (
    characterise,
    combine,
    curvature,
    dictionary,
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
    "dictionary": dictionary.run,
    "evidence": evidence.run,
    "combine": combine.run,
    "vectors": vectors.run,
    "characterise": characterise.run,
    "report": report.run,
}
