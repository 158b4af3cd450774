"""A small adapter of two layers, of unequal rank and alpha, as plain arrays and as a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from atomscope.steering import CONFIG, WEIGHTS, Source, SteeredAdapter, Target, norm, steer_folder

ATOM = Target("atom", 4)
SHAPES = {"model.layers.0.self_attn.q_proj": (6, 2, 4), "model.layers.1.mlp.down_proj": (4, 3, 5)}
"""Layer -> (d_out, r, d_in)."""
SETTINGS: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 3,
    "rank_pattern": {"down_proj": 3},
    "alpha_pattern": {"down_proj": 12},
    "target_modules": ["q_proj", "down_proj"],
    "lora_dropout": 0.1,
    "base_model_name_or_path": "tiny",
}
SCALES = {"model.layers.0.self_attn.q_proj": 3 / 2, "model.layers.1.mlp.down_proj": 12 / 3}


def matrices(seed: int, dtype: Any = np.float32) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    found: dict[str, NDArray[Any]] = {}
    for layer, (rows, rank, columns) in SHAPES.items():
        for side, shape in (("A", (rank, columns)), ("B", (rows, rank))):
            found[f"base_model.model.{layer}.lora_{side}.weight"] = random.normal(size=shape).astype(dtype)
    return found


def write_adapter(folder: Path, dtype: Any = np.float32, **settings: Any) -> Path:
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(SETTINGS | settings))
    save_file(matrices(0, dtype), folder / WEIGHTS, {"format": "pt"})
    return folder


def steered(adapter: Path, strength: float, **how: Any) -> SteeredAdapter:
    config = how.pop("base_config", None)
    source = Source("aud_1", "0", base_config=config)
    return steer_folder(adapter, {ATOM: matrices(1)}, {ATOM: strength}, source, **how)


def product(tensors: dict[str, NDArray[Any]], layer: str) -> NDArray[np.float64]:
    """B A of a layer."""
    a, b = (tensors[f"base_model.model.{layer}.lora_{side}.weight"].astype(np.float64) for side in "AB")
    return b @ a


def steps(strength: float, dtype: Any = np.float32) -> dict[str, NDArray[np.float64]]:
    """dA and dB, by name."""
    factor = strength * norm(matrices(0, dtype)) / norm(matrices(1))
    return {name: factor * tensor.astype(np.float64) for name, tensor in matrices(1).items()}


def linear(strength: float, layer: str, dtype: Any = np.float32) -> NDArray[np.float64]:
    """c (dB A + B dA) of a layer."""
    names = [f"base_model.model.{layer}.lora_{side}.weight" for side in "AB"]
    own, step = matrices(0, dtype), steps(strength, dtype)
    (a, b), (d_a, d_b) = ([found[name].astype(np.float64) for name in names] for found in (own, step))
    return SCALES[layer] * (d_b @ a + b @ d_a)
