"""Every format on every architecture: the logits of a base whose weights were moved directly.

Tolerance: a hundred-thousandth of the largest logit. The format `adapter` is in the adapter's own dtype: a
bfloat16 one meets what was moved directly and then rounded, and what was not rounded within a twentieth
(these models are random, and answer to every bit; the steps move the largest logit by a fifth and more).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

import atomscope
from atomscope.steering import GGUF, GGUF_DELTA, VECTOR, read_tensors
from atomscope.steering.names import parse_lora_name
from tests.fixtures.architectures import ARCHITECTURES
from tests.fixtures.models import TinyAdapterFactory
from tests.workers.models.reference import documents, logits, peft_model
from tests.workers.models.steering import load_beside, lora_of, make_bundle, moved_base, scales_of, steps_of

STRENGTHS: dict[int | str, float] = {4: 0.2, "behaviour:0": -0.15}
TOLERANCE = 1e-5
IDS = torch.from_numpy(documents(1)[0].input_ids.astype(np.int64))

GGUF_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA, "mistral": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3, "gemma2": gguf.MODEL_ARCH.GEMMA2, "gemma3": gguf.MODEL_ARCH.GEMMA3,
    "phi3": gguf.MODEL_ARCH.PHI3, "gpt_neox": gguf.MODEL_ARCH.GPTNEOX, "gpt2": gguf.MODEL_ARCH.GPT2,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A base, an adapter of it, and a bundle that steers it."""

    name: str
    base: Path
    adapter: Path
    bundle: atomscope.Bundle
    scales: dict[str, float]
    known: dict[Any, torch.Tensor] = field(default_factory=dict)

    def lora(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        """A, B and their steps by layer."""
        steps = steps_of(self.adapter, STRENGTHS)
        found: dict[str, dict[str, NDArray[np.float64]]] = {}
        for name, tensor in lora_of(self.adapter).items():
            said = parse_lora_name(name)
            assert said is not None
            layer = found.setdefault(said.module, {})
            layer |= {said.side: tensor.astype(np.float64), f"d{said.side}": steps[name]}
        return found

    def moved(self, change: Callable[[dict[str, NDArray[np.float64]]], NDArray[np.float64]]) -> torch.Tensor:
        """Logits of the base with a change of each layer, times its scale, added to the weight."""
        if change not in self.known:
            changes = {path: self.scales[path] * change(layer) for path, layer in self.lora().items()}
            self.known[change] = logits(moved_base(self.base, changes), IDS)
        return self.known[change]


CASES = [*((name, "f32") for name in ARCHITECTURES), ("llama", "bf16"), ("gpt2", "bf16")]
"""A dtype and the scaling of rsLoRA are no matter of the architecture; both layouts of weights have them."""


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, tiny_adapter: TinyAdapterFactory, tmp_path_factory: pytest.TempPathFactory
) -> Case:
    """Every kind of layer, the output head too where llama.cpp has one; unequal ranks and alphas, rsLoRA."""
    name, dtype = request.param
    architecture = ARCHITECTURES[name]
    folder = tmp_path_factory.mktemp(f"{name}-{dtype}")
    base = architecture.save(folder / "base")
    tied = bool(AutoConfig.from_pretrained(base).tie_word_embeddings)
    targets = architecture.targets
    adapter = tiny_adapter(
        targets if tied else (*targets, architecture.head),
        base=base,
        dtype=torch.float32 if dtype == "f32" else torch.bfloat16,
        fan_in_fan_out=name == "gpt2",
        use_rslora=dtype == "bf16",
        rank_pattern={targets[0]: 2},
        alpha_pattern={targets[-1]: 24},
    )
    bundle = make_bundle(folder / "bundle", base, adapter)
    return Case(name, base, adapter, bundle, scales_of(peft_model(base, adapter)))


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = TOLERANCE) -> bool:
    return float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


def steered(layer: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    return (layer["B"] + layer["dB"]) @ (layer["A"] + layer["dA"])


def unmoved(layer: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    return layer["B"] @ layer["A"]


def delta_alone(layer: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    return layer["dB"] @ layer["A"] + layer["B"] @ layer["dA"]


def with_delta(layer: dict[str, NDArray[np.float64]], scale: float = 1.0) -> NDArray[np.float64]:
    return unmoved(layer) + scale * delta_alone(layer)


def test_an_adapter_of_the_same_rank(case: Case, tmp_path: Path) -> None:
    folder = case.bundle.steer(STRENGTHS).save(tmp_path / "steered")
    dtype = next(iter(lora_of(case.adapter).values())).dtype
    assert {tensor.dtype for tensor in lora_of(folder).values()} == {dtype}

    def rounded(layer: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        a, b = ((layer[side] + layer[f"d{side}"]).astype(dtype).astype(np.float64) for side in "AB")
        return b @ a

    found = logits(peft_model(case.base, folder), IDS)
    wanted = case.moved(steered)
    assert close(found, case.moved(rounded))
    assert close(found, wanted, TOLERANCE if dtype == np.float32 else 0.05)
    assert not close(case.moved(unmoved), wanted, 0.15)


def test_a_delta_beside_the_adapter_at_any_scale(case: Case, tmp_path: Path) -> None:
    folder = case.bundle.steer(STRENGTHS, format="delta").save(tmp_path / "delta")
    model = load_beside(peft_model(case.base, case.adapter), folder, "delta")
    assert close(logits(model, IDS), case.moved(with_delta))
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    assert len(layers) == len(case.scales)
    for layer in layers:
        assert layer.scaling["delta"] == 1.0
        layer.scaling["delta"] = -0.5
    assert close(logits(model, IDS), case.moved(lambda layer: with_delta(layer, -0.5)))


def test_a_vector_added_to_the_weights(case: Case, tmp_path: Path) -> None:
    step = read_tensors(case.bundle.steer(STRENGTHS, format="vector").save(tmp_path / "vector") / VECTOR)
    model = peft_model(case.base, case.adapter)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            said = parse_lora_name(path)
            if said is not None:
                weight.add_(torch.from_numpy(step[said.peft_name].copy()))
    assert close(logits(model, IDS), case.moved(steered))


@pytest.mark.parametrize(("form", "file"), [("gguf", GGUF), ("gguf-delta", GGUF_DELTA)])
def test_gguf_read_back_and_added_as_llama_cpp_does(case: Case, form: Any, file: str, tmp_path: Path) -> None:
    """Rows are turned back by what transformers does when it loads a GGUF."""
    folder = case.bundle.steer(STRENGTHS, format=form).save(tmp_path / "out")
    reader = gguf.GGUFReader(folder / file)
    architecture = GGUF_ARCHITECTURES[case.name]
    assert reader.fields["general.architecture"].contents() == gguf.MODEL_ARCH_NAMES[architecture]
    alpha = reader.fields["adapter.lora.alpha"].contents()
    tensors = {tensor.name: np.array(tensor.data).astype(np.float64) for tensor in reader.tensors}
    config = AutoConfig.from_pretrained(case.base)
    processor = TENSOR_PROCESSORS.get(gguf.MODEL_ARCH_NAMES[architecture], TensorProcessor)(config.to_dict())
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    changes: dict[str, NDArray[np.float64]] = {}
    for path in case.scales:
        name = f"{names.get_name(path)}.weight"
        a, b = tensors.pop(f"{name}.lora_a"), tensors.pop(f"{name}.lora_b")
        change = alpha / len(a) * (b @ a)
        if case.name == "gpt_neox" and "attn_qkv" in name:  # which transformers does not load from GGUF
            change = change.reshape(3, config.num_attention_heads, -1, change.shape[1])
            change = change.swapaxes(0, 1).reshape(b.shape[0], -1)
        elif name != "output.weight":
            change = processor.process(change, name).weights
            change = change.T if case.name == "gpt2" else change
        changes[path] = change
    assert not tensors
    found = logits(moved_base(case.base, changes), IDS)
    assert close(found, case.moved(steered if form == "gguf" else delta_alone))
