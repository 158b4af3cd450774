"""From an audit's vectors and strengths to a steered PEFT adapter, without torch."""

from atomscope.steering.adapter import (
    CONFIG,
    FILES,
    PROVENANCE,
    WEIGHTS,
    Provenance,
    SteeredAdapter,
    steer_folder,
)
from atomscope.steering.apply import Vector, norm, steer
from atomscope.steering.tensors import read_tensors, write_tensors

__all__ = [
    "CONFIG",
    "FILES",
    "PROVENANCE",
    "WEIGHTS",
    "Provenance",
    "SteeredAdapter",
    "Vector",
    "norm",
    "read_tensors",
    "steer",
    "steer_folder",
    "write_tensors",
]
