"""From an audit's vectors and strengths to a steered adapter in any format, without torch."""

from atomscope.steering.adapter import Source, steer_folder
from atomscope.steering.apply import Step, Vector, norm, plan_step, steer
from atomscope.steering.output import (
    CONFIG,
    FILES,
    GGUF,
    GGUF_DELTA,
    PROVENANCE,
    VECTOR,
    WEIGHTS,
    BaseModel,
    Provenance,
    SteeredAdapter,
)
from atomscope.steering.targets import Target, check_choice, parse_target, real
from atomscope.steering.tensors import read_metadata, read_tensors, write_tensors

__all__ = [
    "CONFIG",
    "FILES",
    "GGUF",
    "GGUF_DELTA",
    "PROVENANCE",
    "VECTOR",
    "WEIGHTS",
    "BaseModel",
    "Provenance",
    "Source",
    "SteeredAdapter",
    "Step",
    "Target",
    "Vector",
    "check_choice",
    "norm",
    "parse_target",
    "plan_step",
    "read_metadata",
    "read_tensors",
    "real",
    "steer",
    "steer_folder",
    "write_tensors",
]
