"""Steering the PEFT folder of an adapter, into any of the formats."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from atomscope.errors import SteeringError
from atomscope.steering.apply import Step, Vector, check_finite, moved, plan_step
from atomscope.steering.delta import delta_config, delta_pair, second_order
from atomscope.steering.gguf_lora import gguf_lora
from atomscope.steering.gguf_writer import write_gguf
from atomscope.steering.layers import Pair, by_peft_name, lora_layers, steered_pair
from atomscope.steering.names import parse_lora_name, peft_name
from atomscope.steering.output import (
    CONFIG,
    GGUF,
    GGUF_DELTA,
    VECTOR,
    WEIGHTS,
    BaseModel,
    Provenance,
    SteeredAdapter,
)
from atomscope.steering.targets import Target, check_choice
from atomscope.steering.tensors import read_tensors, write_tensors
from atomscope.text import visible
from atomscope.types.spec import VectorPower
from atomscope.types.steering import FORMATS, UNITS, Format, Unit

MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """Where the vectors come from."""

    audit_id: str
    power: VectorPower | None = None
    base_model: BaseModel | None = None
    base_config: Mapping[str, Any] | None = None
    """`config.json` of the base model, which GGUF needs."""


@dataclass(frozen=True)
class AdapterFolder:
    """The two files of an adapter."""

    content: bytes
    """`adapter_config.json` as it is."""
    config: dict[str, Any]
    lora: dict[str, NDArray[Any]]
    """LoRA tensors by their own names."""
    copies: dict[str, NDArray[Any]]
    """PEFT saves a copy of the base's output head or embeddings beside a LoRA on them."""
    sha256: str


def read_adapter(folder: Path) -> AdapterFolder:
    """Read a PEFT folder; raises `SteeringError` when a file is missing, unusable, or no plain LoRA's."""
    config, weights = folder / CONFIG, folder / WEIGHTS
    for path in (config, weights):
        if not path.is_file():
            raise SteeringError(f"{path.name} is missing from the adapter")
    if config.stat().st_size > MAX_CONFIG_BYTES:
        raise SteeringError(f"{CONFIG} holds more than {MAX_CONFIG_BYTES} bytes")
    content = config.read_bytes()
    try:
        settings = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SteeringError(f"cannot read {CONFIG}: {error}") from error
    held = read_tensors(weights)
    copies = {name: tensor for name, tensor in held.items() if parse_lora_name(name) is None}
    unknown = [name for name in copies if "lora_" in name]
    if unknown:
        raise SteeringError(f"{WEIGHTS}: {visible(unknown[0])} is no tensor of a plain LoRA")
    with weights.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    lora = {name: tensor for name, tensor in held.items() if name not in copies}
    return AdapterFolder(content, settings, lora, copies, digest)


def steer_folder(
    folder: Path,
    vectors: Mapping[Target, Vector],
    strengths: Mapping[Target, float],
    source: Source,
    *,
    format: Format = "adapter",
    unit: Unit = "norm",
) -> SteeredAdapter:
    """Steer the PEFT folder of an adapter; raises `SteeringError`, also when a file of it is unusable.

    Only LoRA tensors are moved, and strengths are in units of their norm. Tensors get the names that PEFT
    loads: where wrappers of a trainer had left marks in the adapter's names, these are taken out, since PEFT
    would load nothing under such a name.
    """
    check_choice("format", format, FORMATS)
    check_choice("unit", unit, UNITS)
    adapter = read_adapter(folder)
    step = plan_step(adapter.lora, vectors, strengths, unit)
    facts = Provenance(
        audit_id=source.audit_id,
        format=format,
        strengths={target.key: float(strengths[target]) for target in sorted(strengths)},
        unit=unit,
        power=source.power,
        factors={target.key: factor for target, factor in step.factors.items()},
        adapter_norm=step.adapter_norm,
        step_norm=math.hypot(
            *(float(np.linalg.norm(step.of(name, tensor.shape))) for name, tensor in adapter.lora.items())
        ),
        base_model=source.base_model,
        adapter_sha256=adapter.sha256,
    )
    if format == "adapter":
        return _same_rank(adapter, step, facts)
    if format == "vector":
        return _vector(adapter, step, facts)
    layers = lora_layers(adapter.lora, adapter.config)
    if format == "gguf":
        pairs = {layer.module: steered_pair(layer, step) for layer in layers}
        return _gguf(pairs, facts, GGUF, source.base_config)
    pairs = {layer.module: delta_pair(layer, step) for layer in layers}
    facts = msgspec.structs.replace(facts, second_order=second_order(layers, step))
    if format == "delta":
        return _delta(adapter, pairs, facts)
    return _gguf(pairs, facts, GGUF_DELTA, source.base_config)


def _same_rank(adapter: AdapterFolder, step: Step, facts: Provenance) -> SteeredAdapter:
    tensors = moved(adapter.lora, step) | adapter.copies
    named = _named_for_peft(tensors)
    return SteeredAdapter(
        facts,
        tensors,
        {
            CONFIG: lambda path: path.write_bytes(adapter.content),
            WEIGHTS: lambda path: write_tensors(named, path),
        },
    )


def _delta(adapter: AdapterFolder, pairs: Mapping[str, Pair], facts: Provenance) -> SteeredAdapter:
    """Copies of the base's weights are left out: the adapter beside which it is loaded has them."""
    tensors = by_peft_name(pairs)
    config = msgspec.json.format(msgspec.json.encode(delta_config(adapter.config, pairs)), indent=2) + b"\n"
    return SteeredAdapter(
        facts,
        tensors,
        {CONFIG: lambda path: path.write_bytes(config), WEIGHTS: lambda path: write_tensors(tensors, path)},
    )


def _vector(adapter: AdapterFolder, step: Step, facts: Provenance) -> SteeredAdapter:
    tensors = {name: step.of(name, tensor.shape).astype(np.float32) for name, tensor in adapter.lora.items()}
    for name, tensor in tensors.items():
        check_finite(name, tensor)
    named = _named_for_peft(tensors)
    # One entry: safetensors writes several in no fixed order, and equal steering must give equal bytes.
    metadata = {"atomscope": facts.encoded().decode()}
    return SteeredAdapter(facts, named, {VECTOR: lambda path: write_tensors(named, path, metadata)})


def _gguf(
    pairs: Mapping[str, Pair], facts: Provenance, file: str, base_config: Mapping[str, Any] | None
) -> SteeredAdapter:
    about, tensors = gguf_lora(pairs, base_config)
    about["atomscope.steering"] = facts.encoded().decode()
    return SteeredAdapter(facts, tensors, {file: lambda path: write_gguf(path, about, tensors)})


def _named_for_peft(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    named = {peft_name(name): tensor for name, tensor in tensors.items()}
    if len(named) != len(tensors):
        raise SteeringError(
            "two tensors of the adapter are one and the same to PEFT: it holds several adapters"
        )
    return named
