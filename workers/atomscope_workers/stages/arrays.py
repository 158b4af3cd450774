"""The intermediate files of the stages: factor sums, curvature, losses, whitened rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from atomscope_workers.pipeline.curvature import Eigenbasis, ModuleCurvature, Rotation
from atomscope_workers.pipeline.factors import FactorSums
from atomscope_workers.pipeline.products import OuterSum
from atomscope_workers.pipeline.projection import ProjectedRows
from atomscope_workers.stages.tensor_ranges import TensorRanges

_FACTS = "atomscope"
"""Metadata key under which a file keeps what is not a tensor, as JSON."""

MORE_LOSSES = "work/losses/more.safetensors"
"""Losses of documents that the evidence wants under the base and the extraction's sample left out."""


def _read_facts(path: Path) -> dict[str, Any]:
    with safe_open(path, "np") as file:
        facts: dict[str, Any] = json.loads(file.metadata()[_FACTS])
    return facts


def save_factors(factors: FactorSums, path: Path) -> None:
    """Write factor sums: `inputs/<group>` and `outputs/<name>`, upper triangles by rows, float32."""
    tensors = {f"inputs/{name}": _triangle(value) for name, value in factors.inputs.items()}
    tensors |= {f"outputs/{name}": _triangle(value) for name, value in factors.outputs.items()}
    facts = {
        "groups": factors.groups,
        "input_tokens": factors.input_tokens,
        "output_tokens": factors.output_tokens,
    }
    save_file(tensors, path, metadata={_FACTS: json.dumps(facts)})


def load_factors(path: Path) -> FactorSums:
    """Read what `save_factors` wrote, on the CPU."""
    facts = _read_facts(path)
    tensors = load_file(path)
    return FactorSums(
        groups=facts["groups"],
        inputs={name: _square(value) for name, value in _under("inputs/", tensors).items()},
        outputs={name: _square(value) for name, value in _under("outputs/", tensors).items()},
        input_tokens=facts["input_tokens"],
        output_tokens=facts["output_tokens"],
    )


def _triangle(total: OuterSum) -> torch.Tensor:
    matrix = total.matrix()
    rows, columns = torch.triu_indices(*matrix.shape, device=matrix.device)
    return matrix[rows, columns].float().cpu()


def _square(triangle: torch.Tensor) -> OuterSum:
    """The float32 sum of an upper triangle of n (n + 1) / 2 entries."""
    size = (math.isqrt(8 * triangle.numel() + 1) - 1) // 2
    rows, columns = torch.triu_indices(size, size)
    matrix = torch.zeros(size, size)
    matrix[columns, rows] = triangle
    matrix[rows, columns] = triangle
    return OuterSum.of(matrix)


def save_rotations(bases: Sequence[Rotation], path: Path) -> None:
    """Write the eigenbases of every module, tensors keyed by parameter name.

    `inputs/<group>/values|vectors` (Q_A, once for modules that share it) and `outputs/<name>/values|vectors`
    (Q_S); groups are metadata.
    """
    facts = {"groups": _groups(bases)}
    save_file(_basis_tensors(bases), path, metadata={_FACTS: json.dumps(facts)})


def load_rotations(path: Path) -> tuple[Rotation, ...]:
    """Read what `save_rotations` wrote, sorted by name."""
    return _rotations(_read_facts(path)["groups"], load_file(path))


def _groups(bases: Sequence[Rotation]) -> dict[str, str]:
    return {rotation.name: rotation.group for rotation in bases}


def _basis_tensors(bases: Sequence[Rotation]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for rotation in bases:
        for side, key, basis in (
            ("inputs", rotation.group, rotation.inputs),
            ("outputs", rotation.name, rotation.outputs),
        ):
            tensors[f"{side}/{key}/values"] = basis.values.contiguous()
            tensors[f"{side}/{key}/vectors"] = basis.vectors.contiguous()
    return tensors


def _rotations(groups: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> tuple[Rotation, ...]:
    def basis(key: str) -> Eigenbasis:
        return Eigenbasis(tensors[f"{key}/values"], tensors[f"{key}/vectors"])

    shared = {group: basis(f"inputs/{group}") for group in set(groups.values())}
    return tuple(
        Rotation(name, group, shared[group], basis(f"outputs/{name}"))
        for name, group in sorted(groups.items())
    )


def save_squared_sums(sums: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write one shard's sums of squared rotated gradients: float64 (d_out, d_in) by parameter name."""
    save_file({name: value.contiguous() for name, value in sums.items()}, path)


def load_squared_sums(path: Path) -> dict[str, torch.Tensor]:
    """Read what `save_squared_sums` wrote."""
    return load_file(path)


def save_curvature(curvature: Sequence[ModuleCurvature], path: Path) -> None:
    """Write the curvature of every module, tensors keyed by parameter name.

    The eigenbases as `save_rotations` does, `lambda/<name>`, `chosen/<name>` (row, column) and
    `scale/<name>`; groups and damping are metadata.
    """
    bases = [module.rotation for module in curvature]
    tensors = _basis_tensors(bases)
    for module in curvature:
        tensors[f"lambda/{module.name}"] = module.lambdas.contiguous()
        tensors[f"chosen/{module.name}"] = module.chosen.contiguous()
        tensors[f"scale/{module.name}"] = module.scale.contiguous()
    facts = {
        "groups": _groups(bases),
        "damping": {module.name: module.damping for module in curvature},
    }
    save_file(tensors, path, metadata={_FACTS: json.dumps(facts)})


def load_curvature(path: Path) -> tuple[ModuleCurvature, ...]:
    """Read what `save_curvature` wrote, sorted by name."""
    facts = _read_facts(path)
    tensors = load_file(path)
    return tuple(
        _module(rotation, facts["damping"][rotation.name], tensors)
        for rotation in _rotations(facts["groups"], tensors)
    )


class CurvatureFile:
    """What `save_curvature` wrote, read module by module."""

    def __init__(self, file: TensorRanges) -> None:
        self._file = file
        facts: dict[str, Any] = json.loads(file.metadata[_FACTS])
        self._groups: dict[str, str] = facts["groups"]
        self._damping: dict[str, float] = facts["damping"]
        self.shapes = {name: file.shape(f"lambda/{name}") for name in sorted(self._groups)}
        """Module -> (d_out, d_in), by name."""

    def module(self, name: str) -> ModuleCurvature:
        """Raises `KeyError` for a module that is not there."""
        group = self._groups[name]
        tensors = {
            key: self._file.tensor(key)
            for basis in (f"inputs/{group}", f"outputs/{name}")
            for key in (f"{basis}/values", f"{basis}/vectors")
        }
        tensors |= {key: self._file.tensor(key) for key in _keys(name)}
        (rotation,) = _rotations({name: group}, tensors)
        return _module(rotation, self._damping[name], tensors)


def _keys(name: str) -> tuple[str, str, str]:
    return f"lambda/{name}", f"chosen/{name}", f"scale/{name}"


def _module(rotation: Rotation, damping: float, tensors: Mapping[str, torch.Tensor]) -> ModuleCurvature:
    lambdas, chosen, scale = (tensors[key] for key in _keys(rotation.name))
    return ModuleCurvature(rotation, lambdas, float(damping), chosen, scale)


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Losses:
    """Per-document scalars of one or all shards, aligned."""

    document: NDArray[np.int64]
    loss: NDArray[np.float64]
    """Summed cross-entropy of the targets with the adapter, in nats."""
    base_loss: NDArray[np.float64]
    """The same under the base alone; NaN where it was not measured."""
    gradient_norm: NDArray[np.float64]
    parent_base_loss: NDArray[np.float64] | None = None
    """Of a refit: what its parent's evidence measured under the base beyond `base_loss`; NaN elsewhere."""


def save_losses(losses: Losses, path: Path) -> None:
    """Write the losses of a shard."""
    arrays = {
        "document": losses.document,
        "loss": losses.loss,
        "base_loss": losses.base_loss,
        "gradient_norm": losses.gradient_norm,
    }
    if losses.parent_base_loss is not None:
        arrays["parent_base_loss"] = losses.parent_base_loss
    save_arrays(arrays, path)


def load_losses(paths: Sequence[Path]) -> Losses:
    """Read the losses of every shard, in shard order."""
    parts = [load_arrays(path) for path in paths]

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([part[name] for part in parts])

    return Losses(
        joined("document"),
        joined("loss"),
        joined("base_loss"),
        joined("gradient_norm"),
        joined("parent_base_loss") if all("parent_base_loss" in part for part in parts) else None,
    )


def save_projected(documents: NDArray[np.int64], rows: ProjectedRows, path: Path) -> None:
    """Write whitened rows: `document`, `rows` float32 (n, k_total), `energy_kept` and `energy_total`."""
    save_arrays(
        {
            "document": documents,
            "rows": np.ascontiguousarray(rows.rows),  # safetensors writes memory as it lies
            "energy_kept": rows.energy_kept,
            "energy_total": rows.energy_total,
        },
        path,
    )


def load_projected(paths: Sequence[Path]) -> tuple[NDArray[np.int64], ProjectedRows]:
    """Read the whitened rows of every shard, in shard order; physical rows first."""
    parts = [load_arrays(path) for path in paths]
    return np.concatenate([part["document"] for part in parts]), ProjectedRows(
        np.concatenate([part["rows"] for part in parts]),
        np.concatenate([part["energy_kept"] for part in parts]),
        np.concatenate([part["energy_total"] for part in parts]),
    )


def save_sketch(documents: NDArray[np.int64], rows: torch.Tensor, path: Path) -> None:
    """Write sketched raw gradients (n, columns) float32: `document` and `sketch`."""
    save_file({"document": torch.from_numpy(documents), "sketch": rows}, path)


def load_sketch(paths: Sequence[Path]) -> torch.Tensor:
    """The rows (N, columns) float32 that `save_sketch` wrote of every shard, in the order of `paths`."""
    return torch.cat([load_file(path)["sketch"] for path in paths])


def save_gram(documents: NDArray[np.int64], gram: torch.Tensor, path: Path) -> None:
    """Write `document` (N) and `gram` float32 (N, N), inner products of the whitened gradients."""
    save_file({"document": torch.from_numpy(documents), "gram": gram.float().cpu().contiguous()}, path)


def load_gram(path: Path) -> tuple[NDArray[np.int64], torch.Tensor]:
    """Read what `save_gram` wrote: physical rows, and float32 (N, N)."""
    tensors = load_file(path)
    return tensors["document"].numpy(), tensors["gram"]
