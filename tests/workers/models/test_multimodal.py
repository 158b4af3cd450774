"""An adapter trained on Gemma 3's multimodal model is audited on the text model within it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

import atomscope
from atomscope.bundle import layout
from atomscope.errors import InvalidInput
from atomscope.steering import Source, Target, norm, read_tensors, steer_folder
from atomscope_workers.models.base import build_meta_base, check_base, load_base
from atomscope_workers.models.load import load_lora_model
from tests.fixtures.architectures import ARCHITECTURES
from tests.fixtures.corpus import write_corpus
from tests.workers.local_runs import SMALL, run
from tests.workers.local_runs import request as asked
from tests.workers.models.damage import copy_of, edit_json, refused
from tests.workers.models.reference import CPU, check_gradients, documents, logits, lora_weights, peft_model

UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:q_proj|v_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)\."
    r"(?:(?:q_proj|v_proj|down_proj)))"
)
"""The pattern that Unsloth writes into `target_modules`."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ARCHITECTURES["gemma3"].save(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The multimodal model around the very weights of the text model."""
    architecture = ARCHITECTURES["gemma3"]
    config = Gemma3Config(
        text_config=architecture.config(),
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
        mm_tokens_per_image=4,
        image_token_index=399,
    )  # fmt: skip
    model = Gemma3ForConditionalGeneration(config)
    inner = architecture.build()
    model.model.language_model.load_state_dict(inner.model.state_dict())
    model.lm_head.load_state_dict(inner.lm_head.state_dict())
    folder = tmp_path_factory.mktemp("whole")
    model.save_pretrained(folder)
    for path in text.iterdir():
        if not (folder / path.name).exists():  # what belongs to the tokenizer
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module", params=["older names", "newer names"])
def hub(whole: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The multimodal model under the names of either kind of file, and its seeing part as it is."""
    if request.param == "older names":
        return whole
    folder = copy_of(whole, tmp_path_factory.mktemp("newer") / "base")
    path = folder / "model.safetensors"
    renamed = {
        name.replace("language_model.model.", "model.language_model.")
        .replace("language_model.lm_head.", "lm_head.")
        .replace("vision_tower.", "model.vision_tower.")
        .replace("multi_modal_projector.", "model.multi_modal_projector."): tensor
        for name, tensor in load_file(path).items()
    }
    assert "model.language_model.embed_tokens.weight" in renamed
    save_file(renamed, path, {"format": "pt"})
    return folder


def test_of_a_multimodal_base_the_text_model_is_loaded_to_the_bit(text: Path, hub: Path) -> None:
    base = check_base(hub)
    assert (base.architecture, base.multimodal) == ("Gemma3ForCausalLM", True)
    assert set(base.tensors).isdisjoint({name for name in base.tensors if "vision" in name})
    found, alone = (load_base(item, dtype=torch.float32, device=CPU) for item in (base, check_base(text)))
    assert type(found) is type(alone)
    states = found.state_dict(), alone.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    names = {name for name, _ in build_meta_base(base).named_parameters()}
    assert names == {name for name, _ in alone.named_parameters()}


def test_the_end_of_a_turn_that_the_whole_names_is_the_text_models(whole: Path, tmp_path: Path) -> None:
    folder = copy_of(whole, tmp_path / "base")
    edit_json(folder / "config.json", eos_token_id=[1, 5])
    assert check_base(folder).config.eos_token_id == [1, 5]


def test_a_multimodal_base_is_audited_and_its_bundle_tells_of_the_text_model(
    hub: Path, adapter: Path, tmp_path: Path
) -> None:
    data = write_corpus(tmp_path / "train.jsonl", 8)
    config = msgspec.structs.replace(SMALL, fits=1, surrogates=0)
    out = run(asked(hub, adapter, data, tmp_path / "out", config))
    bundle = atomscope.open(out)
    assert json.loads(bundle.file(layout.BASE_CONFIG).read_bytes())["model_type"] == "gemma3_text"
    assert bundle.steer({bundle.atoms[0].index: 0.1}, format="gguf")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"text_config": None}, "invalid_config"),
        ({"text_config": {"model_type": "llama"}}, "unsupported_architecture"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized_model"),
        ({"architectures": ["PaliGemmaForConditionalGeneration"]}, "unsupported_architecture"),
    ],
)
def test_what_is_no_text_model_within_is_refused(
    whole: Path, tmp_path: Path, change: dict[str, object], code: str
) -> None:
    folder = copy_of(whole, tmp_path / "base")
    edit_json(folder / "config.json", **change)
    with pytest.raises(InvalidInput) as caught:
        check_base(folder)
    assert caught.value.code == code


def test_a_tensor_of_neither_part_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = copy_of(whole, tmp_path / "base")
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"audio_tower.weight": torch.ones(2)}, path, {"format": "pt"})
    with pytest.raises(InvalidInput) as caught:
        load_base(check_base(folder), dtype=torch.float32, device=CPU)
    assert refused(caught, "base_weights_mismatch") == ("model.safetensors", "audio_tower.weight")


@pytest.fixture(scope="module")
def adapter(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model = Gemma3ForConditionalGeneration.from_pretrained(whole, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=UNSLOTH, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(folder, save_embedding_layers=False)
    generator = torch.Generator().manual_seed(0)
    path = folder / "adapter_model.safetensors"
    drawn = {
        name: 0.2 * torch.randn(t.shape, generator=generator) for name, t in sorted(load_file(path).items())
    }
    save_file(drawn, path, {"format": "pt"})
    return folder


def test_its_gradients_are_those_of_the_multimodal_model_and_keep_the_adapters_names(
    text: Path, whole: Path, adapter: Path
) -> None:
    names = set(read_tensors(adapter / "adapter_model.safetensors"))
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in names)
    lora = load_lora_model(text, adapter, dtype=torch.float32, device=CPU)
    assert {item.name for item in lora.parameters} == names
    check_gradients(lora, peft_model(whole, adapter, Gemma3ForConditionalGeneration), documents(3))


def test_the_steered_adapter_takes_the_adapters_place_on_the_multimodal_model(
    text: Path, whole: Path, adapter: Path, tmp_path: Path
) -> None:
    lora = load_lora_model(text, adapter, dtype=torch.float32, device=CPU)
    generator = np.random.default_rng(0)
    vector = {item.name: generator.normal(size=item.shape).astype(np.float32) for item in lora.parameters}
    atom = Target("atom", 0)
    made = steer_folder(adapter, {atom: vector}, {atom: 0.3}, Source("aud_1"))
    steered = made.save(tmp_path / "steered")
    ids = torch.from_numpy(documents(1)[0].input_ids.astype(np.int64))
    found = logits(peft_model(whole, steered, Gemma3ForConditionalGeneration), ids)
    scale = 0.3 * norm(read_tensors(adapter / "adapter_model.safetensors")) / norm(vector)
    moved = peft_model(whole, adapter, Gemma3ForConditionalGeneration)
    before = logits(moved, ids)
    with torch.no_grad():
        for name, weight in lora_weights(moved).items():
            weight.add_(scale * torch.from_numpy(vector[name]))
    assert torch.allclose(found, logits(moved, ids), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, before, rtol=1e-2, atol=1e-2)


def test_a_lora_on_the_vision_tower_is_refused_by_name(text: Path, adapter: Path, tmp_path: Path) -> None:
    folder = copy_of(adapter, tmp_path / "vision")
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    stem = "base_model.model.model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj"
    seen = {f"{stem}.lora_A.weight": torch.ones(4, 16), f"{stem}.lora_B.weight": torch.ones(16, 4)}
    save_file(tensors | seen, path)
    with pytest.raises(InvalidInput) as caught:
        load_lora_model(text, folder, dtype=torch.float32, device=CPU)
    assert caught.value.code == "adapter_base_mismatch"
    assert {problem.field for problem in caught.value.problems} == set(seen)
