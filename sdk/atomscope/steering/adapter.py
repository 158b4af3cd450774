"""A steered adapter: a PEFT folder, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from atomscope.errors import SteeringError
from atomscope.steering.apply import Vector, steer
from atomscope.steering.tensors import read_tensors, write_tensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PROVENANCE = "atomscope_steering.json"
FILES = (CONFIG, WEIGHTS, PROVENANCE)


class Provenance(msgspec.Struct, kw_only=True, frozen=True):
    """`atomscope_steering.json`: what was added to which adapter."""

    audit_id: str
    strengths: dict[str, float]
    """Atom index -> strength, in units of the adapter's norm."""
    direction: str = "adding an atom's vector raises its behaviour"
    format_version: int = 1


class SteeredAdapter:
    """The steered weights of an adapter, ready to be saved as a PEFT folder."""

    def __init__(self, config: bytes, tensors: Mapping[str, Any], provenance: Provenance) -> None:
        self.config = config
        """`adapter_config.json`, as it was."""
        self.tensors = dict(tensors)
        """Weights by name, in the adapter's own dtypes."""
        self.provenance = provenance

    def save(self, folder: str | Path) -> Path:
        """Write the PEFT folder and return it; an earlier save there is replaced.

        Raises `SteeringError` when the folder holds anything that a save did not put there.
        """
        target = Path(folder)
        claim_folder(target)
        target.mkdir(parents=True, exist_ok=True)
        (target / CONFIG).write_bytes(self.config)
        temporary = target / f"{WEIGHTS}.partial"
        write_tensors(self.tensors, temporary)
        temporary.replace(target / WEIGHTS)
        provenance = msgspec.json.format(msgspec.json.encode(self.provenance), indent=2)
        (target / PROVENANCE).write_bytes(provenance + b"\n")
        return target


def claim_folder(folder: Path) -> None:
    """Raise `SteeringError` unless `folder` is missing, empty, or an earlier save of a steered adapter."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise SteeringError(f"{folder} is not a folder")
    names = {path.name for path in folder.iterdir()} - {f"{WEIGHTS}.partial"}
    if names and not (names <= set(FILES) and PROVENANCE in names):
        raise SteeringError(f"{folder} is not empty and holds no steered adapter: give another folder")


def steer_folder(
    adapter: Path, vectors: Mapping[int, Vector], strengths: Mapping[int, float], audit_id: str
) -> SteeredAdapter:
    """Steer the PEFT folder `adapter`; raises `SteeringError` (see `steer`) and when a file is missing."""
    for name in (CONFIG, WEIGHTS):
        if not (adapter / name).is_file():
            raise SteeringError(f"{name} is missing from the adapter")
    tensors = steer(read_tensors(adapter / WEIGHTS), vectors, strengths)
    return SteeredAdapter(
        config=(adapter / CONFIG).read_bytes(),
        tensors=tensors,
        provenance=Provenance(
            audit_id=audit_id, strengths={str(atom): value for atom, value in sorted(strengths.items())}
        ),
    )
