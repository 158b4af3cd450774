"""Bundles of adapters with random vectors, and the logits of a base whose weights were moved directly."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import atomscope
from atomscope.bundle import Coefficients, layout, write_coefficients, write_manifest
from atomscope.steering import norm, read_tensors, write_tensors
from atomscope.steering.names import parse_lora_name
from atomscope.store import LocalStore
from atomscope.types.atoms import Atom, Behaviour, DocumentStrength, Evidence
from atomscope.types.bundle import FileEntry
from atomscope.types.spec import AuditConfig, AuditSpec, InputRef

ATOMS = (4, 9)
WEIGHTS = {4: 0.75, 9: 0.25}
"""Mean code of the behaviour's two documents on each atom."""


def lora_of(adapter: Path) -> dict[str, NDArray[Any]]:
    """The LoRA tensors of a folder; copies of base weights left out."""
    held = read_tensors(adapter / "adapter_model.safetensors")
    return {name: tensor for name, tensor in held.items() if parse_lora_name(name) is not None}


def vector_of(adapter: Path, atom: int) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(atom)
    return {name: random.normal(size=t.shape).astype(np.float32) for name, t in lora_of(adapter).items()}


def make_bundle(folder: Path, base: Path, adapter: Path) -> atomscope.Bundle:
    """A bundle of two atoms, and behaviour 0 of both."""
    reference = InputRef(id="local", location="/", sha256="0" * 64, size=1, name="tiny")
    spec = AuditSpec(
        audit_id="aud_1", project_id="prj_1", base_model=reference, adapter=reference, dataset=reference,
        config=AuditConfig(),
    )  # fmt: skip
    files: dict[str, bytes] = {
        layout.SPEC: msgspec.json.encode(spec),
        layout.ATOMS: msgspec.json.encode([_atom(index, rank) for rank, index in enumerate(ATOMS, 1)]),
        layout.BEHAVIOURS: msgspec.json.encode([_behaviour()]),
        layout.ADAPTER_CONFIG: (adapter / "adapter_config.json").read_bytes(),
        layout.ADAPTER_WEIGHTS: (adapter / "adapter_model.safetensors").read_bytes(),
        layout.BASE_CONFIG: (base / "config.json").read_bytes(),
    }
    folder.mkdir(parents=True)
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    rows, atoms, codes = [0, 1, 0], [4, 4, 9], [0.5, 1.0, 0.5]
    write_coefficients(
        Coefficients(np.array(rows), np.array(atoms, np.int32), np.array(codes)), folder / layout.COEFFICIENTS
    )
    (folder / layout.vector(0)).parent.mkdir()
    for atom in ATOMS:
        write_tensors(vector_of(adapter, atom), folder / layout.vector(atom))
    entries = [
        FileEntry(
            path=path.relative_to(folder).as_posix(),
            size=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    write_manifest(LocalStore(folder), "", "aud_1", entries)
    return atomscope.open(folder)


def _atom(index: int, rank: int) -> Atom:
    return Atom(
        index=index, rank=rank, coherence=0.5, null_coherence=0.0, null_coherence_95=0.0, n_active=2,
        n_positive=2, n_negative=0, sign=1, mean_coefficient=0.5, energy_retained=1.0, vector_norm=1.0,
        keywords=[], top_documents=[], bottom_documents=[],
    )  # fmt: skip


def _behaviour() -> Behaviour:
    return Behaviour(
        index=0, rank=1, score=1.0, atoms=list(ATOMS), n_documents=2, share=1.0, coherence=0.5,
        null_coherence=0.0, null_coherence_95=0.0, evidence=Evidence(), keywords=[], top_documents=[],
        documents=[DocumentStrength(document=row, strength=1.0) for row in (0, 1)],
    )  # fmt: skip


def steps_of(adapter: Path, strengths: dict[int | str, float]) -> dict[str, NDArray[np.float64]]:
    """theta' - theta, by the adapter's names."""
    vectors: dict[int | str, dict[str, Any]] = {atom: vector_of(adapter, atom) for atom in ATOMS}
    vectors["behaviour:0"] = {
        name: sum(WEIGHTS[atom] * vectors[atom][name].astype(np.float64) for atom in ATOMS)
        for name in vectors[4]
    }
    size = norm(lora_of(adapter))
    return {
        name: sum(
            (strength * size / norm(vectors[target]) * vectors[target][name].astype(np.float64)
             for target, strength in strengths.items()),
            np.zeros(tensor.shape),
        )
        for name, tensor in lora_of(adapter).items()
    }  # fmt: skip


def scales_of(model: Any) -> dict[str, float]:
    """What PEFT multiplies B A by in each layer, by path in the base."""
    layers = model.get_base_model().named_modules()
    return {name: layer.scaling["default"] for name, layer in layers if isinstance(layer, LoraLayer)}


def moved_base(base: Path, changes: dict[str, NDArray[np.float64]]) -> Any:
    """The base alone with changes, (d_out, d_in) in float64, added to the weights of its layers by path.

    A head whose weight is that of the embedding is moved alone, as a LoRA on it does.
    """
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    layers = dict(model.named_modules())
    with torch.no_grad():
        for path, change in changes.items():
            layer = layers[path]
            added = torch.from_numpy(change if not isinstance(layer, Conv1D) else change.T)
            layer.weight = torch.nn.Parameter((layer.weight.double() + added).float())
    return model


def load_beside(model: Any, folder: Path, name: str) -> Any:
    """Another adapter on a PEFT model, both active."""
    with warnings.catch_warnings():  # of merging into tied weights, and of layers of both layouts
        warnings.filterwarnings("ignore", message="Model (has|with) `tie_word|fan_in_fan_out is set to")
        model.load_adapter(str(folder), name)
    model.base_model.set_adapter(["default", name])
    return model.eval()
