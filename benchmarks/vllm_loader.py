"""Steered folders as vLLM loads them, against what PEFT makes of them.

    pip install --no-deps vllm      # beside Atomscope, in an environment of its own
    PYTHONPATH=. python benchmarks/vllm_loader.py

The server needs its devices; what reads an adapter's folder does not, but for the packages that its import
asks for. A tiny random Llama is given adapters of one scale, rank-stabilised ones, and ones of unequal ranks
and alphas; each is steered at strength 0.2. Told is the largest difference between a layer's scale * BA there
and PEFT's own, as a share of the largest of PEFT's, or why vLLM refuses the folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from llama_cpp import make_base
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from tests.workers.models.reference import peft_model
from tests.workers.models.steering import make_bundle
from transformers import AutoConfig, AutoModelForCausalLM

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STRENGTH = 0.2
ADAPTERS: dict[str, dict[str, Any]] = {
    "one scale": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"o_proj": 24}},
}
Deltas = dict[str, torch.Tensor]
"""Layer -> what it adds to its weight, float32."""


def make_adapter(base: Path, folder: Path, settings: Mapping[str, Any]) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=PROJECTIONS, task_type="CAUSAL_LM", **settings)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    path, generator = folder / "adapter_model.safetensors", torch.Generator().manual_seed(1)
    held = sorted(load_file(path).items())
    drawn = {name: 0.1 * torch.randn(value.shape, generator=generator) for name, value in held}
    save_file(drawn, path, metadata={"format": "pt"})


def of_peft(base: Path, folder: Path) -> Deltas:
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach().float()
        for name, module in peft_model(base, folder).named_modules()
        if isinstance(module, LoraLayer)
    }


def of_vllm(base: Path, folder: Path) -> Deltas:
    from vllm.config.lora import LoRAConfig  # noqa: PLC0415  (not installed with Atomscope)
    from vllm.lora.lora_model import LoRAModel  # noqa: PLC0415
    from vllm.lora.peft_helper import PEFTHelper  # noqa: PLC0415

    positions = AutoConfig.from_pretrained(base).max_position_embeddings
    settings = PEFTHelper.from_local_dir(str(folder), positions)
    settings.validate_legal(LoRAConfig(max_lora_rank=8))
    # Of "cpu" the memory would be pinned, which takes an accelerator.
    loaded = LoRAModel.from_local_checkpoint(
        str(folder), set(PROJECTIONS), settings, lora_model_id=1, device="cpu:0", dtype=torch.float32
    )
    return {name: lora.scaling * lora.lora_b @ lora.lora_a for name, lora in loaded.loras.items()}


def told(base: Path, folder: Path, wanted: Deltas) -> str:
    try:
        found = of_vllm(base, folder)
    except ValueError as error:
        return f"refused: {error}"
    if found.keys() != wanted.keys():
        return f"other layers: {sorted(found.keys() ^ wanted.keys())[:2]}"
    off = {name: (found[name] - delta).abs().max() / delta.abs().max() for name, delta in wanted.items()}
    worst = max(off, key=lambda name: off[name])
    return f"{off[worst]:.0e}" + (f" ({worst.rsplit('.', 1)[-1]})" if off[worst] > 1e-5 else "")


def main() -> None:
    print("| adapter | format | differs |")
    print("|---|---|---|")
    for title, settings in ADAPTERS.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            base, adapter = folder / "base", folder / "lora"
            make_base("llama", base)
            make_adapter(base, adapter, settings)
            bundle = make_bundle(folder / "bundle", base, adapter)
            for form in ("adapter", "delta"):
                steered = bundle.steer({4: STRENGTH}, format=form).save(folder / form)
                print(f"| {title} | {form} | {told(base, steered, of_peft(base, steered))} |", flush=True)


if __name__ == "__main__":
    main()
