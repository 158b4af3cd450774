"""A steered adapter: a PEFT folder, and where it came from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from atomscope.errors import SteeringError
from atomscope.steering.apply import Vector, steer
from atomscope.steering.names import parse_lora_name, peft_name
from atomscope.steering.tensors import read_tensors, write_tensors
from atomscope.text import visible

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PROVENANCE = "atomscope_steering.json"
FILES = (CONFIG, WEIGHTS, PROVENANCE)

MAX_CONFIG_BYTES = 1 << 20
_PARTIAL = ".partial"


class Provenance(msgspec.Struct, kw_only=True, frozen=True):
    """`atomscope_steering.json`: what was added to which adapter."""

    audit_id: str
    strengths: dict[str, float]
    """Atom index -> strength, in units of the adapter's norm."""
    adapter_sha256: str | None = None
    """Of the weights that were steered."""
    direction: str = "adding an atom's vector raises its behaviour"
    format_version: int = 1


class SteeredAdapter:
    """The steered weights of an adapter, ready to be saved as a PEFT folder."""

    def __init__(self, config: bytes, tensors: Mapping[str, Any], provenance: Provenance) -> None:
        self.config = config
        """`adapter_config.json`, as it was."""
        self.tensors = dict(tensors)
        """Weights by the adapter's own names, in its own dtypes."""
        self.provenance = provenance

    def __repr__(self) -> str:
        return f"<SteeredAdapter of {self.provenance.audit_id}: {self.provenance.strengths}>"

    def save(self, folder: str | Path) -> Path:
        """Write the PEFT folder and return it; an earlier save there is replaced, file by file.

        Tensors get the names that PEFT loads: where wrappers of a trainer had left marks in the adapter's
        names, these are taken out, since PEFT would load nothing under such a name.

        Raises `SteeringError` when the folder holds anything that a save did not put there, or cannot be
        written.
        """
        target = Path(folder)
        claim_folder(target)
        tensors = _named_for_peft(self.tensors)
        provenance = msgspec.json.format(msgspec.json.encode(self.provenance), indent=2) + b"\n"
        try:
            target.mkdir(parents=True, exist_ok=True)
            # Provenance first: whatever breaks off the save, the folder is known to be ours afterwards.
            _replace(target / PROVENANCE, lambda path: path.write_bytes(provenance))
            _replace(target / CONFIG, lambda path: path.write_bytes(self.config))
            _replace(target / WEIGHTS, lambda path: write_tensors(tensors, path))
        except OSError as error:
            raise SteeringError(f"cannot write the adapter: {error}") from error
        return target


def _named_for_peft(tensors: Mapping[str, Any]) -> dict[str, Any]:
    named = {peft_name(name): tensor for name, tensor in tensors.items()}
    if len(named) != len(tensors):
        raise SteeringError(
            "two tensors of the adapter are one and the same to PEFT: it holds several adapters"
        )
    return named


def _replace(path: Path, fill: Callable[[Path], object]) -> None:
    """Have `fill` make the file beside `path`, then move it there: weights are never half-written."""
    temporary = path.with_name(f"{path.name}{_PARTIAL}")
    fill(temporary)
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(path)


def claim_folder(folder: Path) -> None:
    """Raise `SteeringError` unless `folder` is missing, empty, or an earlier save of a steered adapter."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise SteeringError(f"{folder} is not a folder")
    # A save that broke off left half-written files, or nothing but those.
    names = {path.name.removesuffix(_PARTIAL) for path in folder.iterdir()}
    if names and not (names <= set(FILES) and PROVENANCE in names):
        raise SteeringError(f"{folder} is not empty and holds no steered adapter: give another folder")


def steer_folder(
    adapter: Path, vectors: Mapping[int, Vector], strengths: Mapping[int, float], audit_id: str
) -> SteeredAdapter:
    """Steer the PEFT folder `adapter`; raises `SteeringError`, also when a file of it is unusable.

    Only LoRA tensors are moved, and strengths are in units of their norm. PEFT saves a copy of the base's
    output head or embeddings beside a LoRA on them: such a copy is kept as it is.
    """
    config, weights = adapter / CONFIG, adapter / WEIGHTS
    for path in (config, weights):
        if not path.is_file():
            raise SteeringError(f"{path.name} is missing from the adapter")
    if config.stat().st_size > MAX_CONFIG_BYTES:
        raise SteeringError(f"{CONFIG} holds more than {MAX_CONFIG_BYTES} bytes")
    content = config.read_bytes()
    try:
        msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SteeringError(f"cannot read {CONFIG}: {error}") from error
    held = read_tensors(weights)
    copies = {name: tensor for name, tensor in held.items() if parse_lora_name(name) is None}
    unknown = [name for name in copies if "lora_" in name]
    if unknown:
        raise SteeringError(f"{WEIGHTS}: {visible(unknown[0])} is no tensor of a plain LoRA")
    lora = {name: tensor for name, tensor in held.items() if name not in copies}
    tensors = steer(lora, vectors, strengths) | copies
    with weights.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    return SteeredAdapter(
        config=content,
        tensors=tensors,
        provenance=Provenance(
            audit_id=audit_id,
            strengths={str(atom): float(value) for atom, value in sorted(strengths.items())},
            adapter_sha256=digest,
        ),
    )
