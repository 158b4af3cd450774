"""A whole local audit of a GPT-2 with a trainer's folder: names kept throughout, steering what PEFT loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import atomscope
from atomscope.bundle import layout
from atomscope.steering import GGUF, norm, read_tensors
from atomscope.steering.names import peft_name
from atomscope_workers.steered import steered
from tests.fixtures.architectures import ARCHITECTURES
from tests.fixtures.corpus import write_corpus
from tests.fixtures.models import TinyAdapterFactory
from tests.workers.local_runs import request, run
from tests.workers.models.reference import documents, logits, lora_weights, peft_model
from tests.workers.models.steering import load_beside
from tests.workers.models.trainers import TRAINERS, leave


@pytest.mark.parametrize("name", ["gpt2", "phi3"])
def test_an_audit_keeps_the_adapters_names_and_steers_what_peft_loads(
    name: str, tiny_adapter: TinyAdapterFactory, tmp_path: Path
) -> None:
    architecture = ARCHITECTURES[name]
    base = architecture.save(tmp_path / "base")
    plain = tiny_adapter(architecture.targets, base=base, fan_in_fan_out=name == "gpt2")
    weights = plain / "adapter_model.safetensors"
    own = {
        f"_orig_mod.{item.replace('.weight', '.default.weight')}": tensor
        for item, tensor in load_file(weights).items()
    }
    wrapped = leave(tmp_path / "run", TRAINERS["unsloth"])
    (wrapped / "adapter_config.json").write_bytes((plain / "adapter_config.json").read_bytes())
    save_file(own, wrapped / "adapter_model.safetensors")
    dataset = write_corpus(tmp_path / "train.jsonl", 20)

    bundle = atomscope.open(run(request(base, wrapped, dataset, tmp_path / "out")))
    atom = bundle.atoms[0].index
    vector = bundle.vector(atom)
    assert vector.keys() == own.keys()
    assert load_file(bundle.file(layout.gradient_shard(0))).keys() - {"document"} == own.keys()
    assert (
        bundle.file(layout.ADAPTER_WEIGHTS).read_bytes()
        == (wrapped / "adapter_model.safetensors").read_bytes()
    )

    saved = bundle.steer({atom: 0.4}).save(tmp_path / "steered")
    assert read_tensors(saved / "adapter_model.safetensors").keys() == {peft_name(item) for item in own}
    ids = torch.from_numpy(documents(1)[0].input_ids.astype(np.int64))
    moved = peft_model(base, plain)
    before = logits(moved, ids)
    scale = 0.4 * norm(read_tensors(weights)) / norm(vector)
    by_peft = {peft_name(item): tensor for item, tensor in vector.items()}
    with torch.no_grad():
        for item, weight in lora_weights(moved).items():
            weight.add_(scale * torch.from_numpy(np.array(by_peft[item], np.float32)))
    found = logits(peft_model(base, saved), ids)
    assert torch.allclose(found, logits(moved, ids), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, before, rtol=1e-2, atol=1e-2)

    # Every other format of this bundle, its names full of marks: a behaviour, in another power.
    strengths = {bundle.behaviours[0]: 0.3}
    how: dict[str, Any] = {"power": "-1/2"}
    same = peft_model(base, bundle.steer(strengths, **how).save(tmp_path / "same"))
    beside = load_beside(
        peft_model(base, plain),
        bundle.steer(strengths, format="delta", **how).save(tmp_path / "delta"),
        "delta",
    )
    near, away = logits(beside, ids) - logits(same, ids), logits(same, ids) - before
    assert 0 < near.norm() < 0.3 * away.norm()
    file = bundle.steer(strengths, format="gguf", **how).save(tmp_path / "gguf") / GGUF
    assert len(gguf.GGUFReader(file).tensors) == len(own)
    unmarked = peft_model(base, plain)
    with steered(unmarked, bundle, strengths, **how):
        assert torch.allclose(logits(unmarked, ids), logits(same, ids), rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(unmarked, ids), before)
