"""What steering makes: files in a folder, and where they came from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from atomscope.errors import SteeringError, UsageError
from atomscope.result_folder import enclosing_bundle
from atomscope.types.spec import VectorPower
from atomscope.types.steering import Format, Unit

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
VECTOR = "steering_vector.safetensors"
GGUF = "adapter.gguf"
GGUF_DELTA = "delta.gguf"
PROVENANCE = "atomscope_steering.json"
EVALUATION = "atomscope_evaluation.json"
"""Beside an adapter whose strength was found: the evaluation that found it, with all costs."""
FILES = (CONFIG, WEIGHTS, VECTOR, GGUF, GGUF_DELTA, PROVENANCE, EVALUATION)

_PARTIAL = ".partial"


class BaseModel(msgspec.Struct, kw_only=True, frozen=True):
    """The base model of the audit."""

    id: str
    name: str
    sha256: str


class Provenance(msgspec.Struct, kw_only=True, frozen=True):
    """`atomscope_steering.json`: what was added to which adapter."""

    audit_id: str
    format: Format = "adapter"
    strengths: dict[str, float]
    """Atom index, or `behaviour:` and index -> strength."""
    unit: Unit = "norm"
    """`norm`: of the adapter. `alpha`: of the vector as it is stored."""
    power: VectorPower | None = None
    """Power of (lambda + damping) in the unprojection of the vectors."""
    factors: dict[str, float] = {}
    """What each vector was multiplied by before it was added."""
    adapter_norm: float = 0.0
    """Euclidean norm of the adapter's LoRA tensors together."""
    step_norm: float = 0.0
    """The same of what was added to them."""
    second_order: float | None = None
    """Of a delta, which is linear in the strength: Frobenius norm of the term that it leaves out, dB dA, as a
    share of its own."""
    base_model: BaseModel | None = None
    adapter_sha256: str | None = None
    """Of the weights that were steered."""
    direction: str = "adding a vector raises its behaviour"
    format_version: int = 1

    def encoded(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


class SteeredAdapter:
    """The result of steering in one format, ready to be saved in a folder."""

    def __init__(
        self,
        provenance: Provenance,
        tensors: Mapping[str, NDArray[Any]],
        files: Mapping[str, Callable[[Path], object]],
    ) -> None:
        self.provenance = provenance
        self.tensors = dict(tensors)
        """An `adapter`: weights by the adapter's own names, in its own dtypes. Other formats: float32, by the
        names in the file."""
        self._files = dict(files)

    def __repr__(self) -> str:
        return (
            f"<SteeredAdapter ({self.provenance.format}) of {self.provenance.audit_id}: "
            f"{self.provenance.strengths}>"
        )

    def save(self, folder: str | Path) -> Path:
        """Write the files and return the folder; an earlier save there is replaced, file by file.

        Raises `SteeringError` when the folder holds anything that a save did not put there, or cannot be
        written; `UsageError` when it lies within a bundle.
        """
        target = Path(folder)
        claim_folder(target)
        try:
            target.mkdir(parents=True, exist_ok=True)
            # Provenance first: whatever breaks off the save, the folder is known to be ours afterwards.
            _replace(target / PROVENANCE, lambda path: path.write_bytes(self.provenance.encoded()))
            for name, fill in self._files.items():
                _replace(target / name, fill)
            remove_others(target, self._files)
        except OSError as error:
            raise SteeringError(f"cannot write the adapter: {error}") from error
        return target


def keep_evaluation(folder: Path, content: bytes) -> None:
    """Lay the evaluation that found a strength beside the adapter that was saved in `folder`.

    Raises `SteeringError` where it cannot be written; the adapter stays.
    """
    try:
        _replace(folder / EVALUATION, lambda path: path.write_bytes(content))
    except OSError as error:
        raise SteeringError(f"cannot write the evaluation beside the adapter: {error}") from error


def _replace(path: Path, fill: Callable[[Path], object]) -> None:
    """Have `fill` make the file beside `path`, then move it there: weights are never half-written."""
    temporary = path.with_name(f"{path.name}{_PARTIAL}")
    fill(temporary)
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(path)


def claim_folder(folder: Path) -> None:
    """Raise `SteeringError` unless `folder` is missing, empty, or an earlier save of a steered adapter.

    Raises `UsageError` for one that lies within a bundle.
    """
    bundle = enclosing_bundle(folder)
    if bundle is not None:
        raise UsageError(f"{folder} is within the bundle {bundle}, which never changes: give another folder")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise SteeringError(f"{folder} is not a folder")
    # A save that broke off left half-written files, or nothing but those.
    names = {path.name.removesuffix(_PARTIAL) for path in folder.iterdir()}
    if names and not (names <= set(FILES) and PROVENANCE in names):
        raise SteeringError(f"{folder} is not empty and holds no steered adapter: give another folder")


def remove_others(folder: Path, names: Mapping[str, object] | set[str]) -> None:
    """Remove what an earlier save in another format left in a claimed folder."""
    for name in FILES:
        if name not in names and name != PROVENANCE:
            (folder / name).unlink(missing_ok=True)
            (folder / f"{name}{_PARTIAL}").unlink(missing_ok=True)
