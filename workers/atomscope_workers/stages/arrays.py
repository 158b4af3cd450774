"""The intermediate files of the stages: factor sums, curvature, losses, whitened rows, gradient shards."""

from __future__ import annotations

import json
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
from atomscope_workers.pipeline.projection import ProjectedRows

_FACTS = "atomscope"
"""Metadata key under which a file keeps what is not a tensor, as JSON."""


def _read_facts(path: Path) -> dict[str, Any]:
    with safe_open(path, "np") as file:
        facts: dict[str, Any] = json.loads(file.metadata()[_FACTS])
    return facts


def save_factors(factors: FactorSums, path: Path) -> None:
    """Write factor sums: `inputs/<group>` and `outputs/<name>`, float64."""
    tensors = {f"inputs/{name}": value.cpu() for name, value in factors.inputs.items()}
    tensors |= {f"outputs/{name}": value.cpu() for name, value in factors.outputs.items()}
    facts = {
        "groups": factors.groups,
        "input_tokens": factors.input_tokens,
        "output_tokens": factors.output_tokens,
    }
    save_file(tensors, path, metadata={_FACTS: json.dumps(facts)})


def load_factors(path: Path) -> FactorSums:
    """Read what `save_factors` wrote."""
    facts = _read_facts(path)
    tensors = load_file(path)
    return FactorSums(
        groups=facts["groups"],
        inputs=_under("inputs/", tensors),
        outputs=_under("outputs/", tensors),
        input_tokens=facts["input_tokens"],
        output_tokens=facts["output_tokens"],
    )


def save_curvature(curvature: Sequence[ModuleCurvature], path: Path) -> None:
    """Write the curvature of every module, tensors keyed by parameter name.

    `inputs/<group>/values|vectors` (Q_A, once for modules that share it), `outputs/<name>/values|vectors`
    (Q_S), `lambda/<name>`, `chosen/<name>` (row, column) and `scale/<name>`; groups and damping are metadata.
    """
    tensors: dict[str, torch.Tensor] = {}
    for module in curvature:
        rotation = module.rotation
        for side, key, basis in (
            ("inputs", rotation.group, rotation.inputs),
            ("outputs", module.name, rotation.outputs),
        ):
            tensors[f"{side}/{key}/values"] = basis.values.contiguous()
            tensors[f"{side}/{key}/vectors"] = basis.vectors.contiguous()
        tensors[f"lambda/{module.name}"] = module.lambdas.contiguous()
        tensors[f"chosen/{module.name}"] = module.chosen.contiguous()
        tensors[f"scale/{module.name}"] = module.scale.contiguous()
    facts = {
        "groups": {module.name: module.rotation.group for module in curvature},
        "damping": {module.name: module.damping for module in curvature},
    }
    save_file(tensors, path, metadata={_FACTS: json.dumps(facts)})


def load_curvature(path: Path) -> tuple[ModuleCurvature, ...]:
    """Read what `save_curvature` wrote, sorted by name."""
    facts = _read_facts(path)
    tensors = load_file(path)

    def basis(key: str) -> Eigenbasis:
        return Eigenbasis(tensors[f"{key}/values"], tensors[f"{key}/vectors"])

    groups: dict[str, str] = facts["groups"]
    shared = {group: basis(f"inputs/{group}") for group in set(groups.values())}
    return tuple(
        ModuleCurvature(
            rotation=Rotation(name, group, shared[group], basis(f"outputs/{name}")),
            lambdas=tensors[f"lambda/{name}"],
            damping=float(facts["damping"][name]),
            chosen=tensors[f"chosen/{name}"],
            scale=tensors[f"scale/{name}"],
        )
        for name, group in sorted(groups.items())
    )


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Losses:
    """Per-document scalars of one or all shards, aligned."""

    document: NDArray[np.int64]
    loss: NDArray[np.float64]
    """Summed cross-entropy of the targets with the adapter, in nats."""
    base_loss: NDArray[np.float64]
    """The same under the base alone."""
    gradient_norm: NDArray[np.float64]


def save_losses(losses: Losses, path: Path) -> None:
    """Write the losses of a shard."""
    save_arrays(
        {
            "document": losses.document,
            "loss": losses.loss,
            "base_loss": losses.base_loss,
            "gradient_norm": losses.gradient_norm,
        },
        path,
    )


def load_losses(paths: Sequence[Path]) -> Losses:
    """Read the losses of every shard, in shard order."""
    parts = [load_arrays(path) for path in paths]

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([part[name] for part in parts])

    return Losses(joined("document"), joined("loss"), joined("base_loss"), joined("gradient_norm"))


def save_projected(documents: NDArray[np.int64], rows: ProjectedRows, path: Path) -> None:
    """Write whitened rows: `document`, `rows` float32 (n, k_total), `energy_kept` and `energy_total`."""
    save_arrays(
        {
            "document": documents,
            "rows": rows.rows,
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


class GradientShards:
    """Per-document gradients of every shard, read by parameter and position, one parameter at a time."""

    def __init__(self, paths: Sequence[Path], device: torch.device) -> None:
        self._files = [safe_open(path, "pt") for path in paths]
        self._device = device
        sizes = [file.get_slice("document").get_shape()[0] for file in self._files]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.names: list[str] = sorted(set(self._files[0].keys()) - {"document"})

    def shard(self, index: int, name: str) -> torch.Tensor:
        """float32 (rows, d_out, d_in) of one shard."""
        tensor: torch.Tensor = self._files[index].get_tensor(name)
        return tensor.to(self._device)

    def rows(self, name: str, positions: NDArray[np.int64]) -> torch.Tensor:
        """float32 (len(positions), d_out, d_in); positions rise and count documents over all shards."""
        parts: list[torch.Tensor] = []
        for index, file in enumerate(self._files):
            start, stop = self._starts[index], self._starts[index + 1]
            local = positions[(positions >= start) & (positions < stop)] - start
            if len(local):
                tensor: torch.Tensor = file.get_tensor(name)
                parts.append(tensor[torch.from_numpy(local)])
        if not parts:
            shape = self._files[0].get_slice(name).get_shape()[1:]
            return torch.zeros((0, *shape), device=self._device)
        return torch.cat(parts).to(self._device)
