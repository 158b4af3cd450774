"""Base models from strangers: what is refused, by which code, naming which file and field."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from atomscope.errors import InvalidInput
from atomscope_workers.models.base import (
    ARCHITECTURES,
    build_meta_base,
    check_base,
    load_base,
    load_tokenizer,
)
from tests.workers.models.damage import copy_of, edit_json, edit_tensors, refused, rewrite_header

CPU = torch.device("cpu")


class Bomb:
    """Unpickling it creates a file: proof that something was unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return open, (str(self.path), "w")


@pytest.fixture
def base(tiny_llama: Path, tmp_path: Path) -> Path:
    return copy_of(tiny_llama, tmp_path / "base")


def test_a_whole_folder_is_accepted_and_loads_in_eval_mode(base: Path) -> None:
    checked = check_base(base)
    model = load_base(checked, dtype=torch.bfloat16, device=CPU)
    assert checked.architecture == "LlamaForCausalLM"
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == "sdpa"
    assert load_tokenizer(base).chat_template


def test_every_allowed_architecture_is_known_to_transformers() -> None:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for architecture, model_type in ARCHITECTURES.items():
        assert model_type in CONFIG_MAPPING
        assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type] == architecture


PICKLES = [
    "pytorch_model.bin",
    "adapter_model.bin",
    "model.pt",
    "weights.pkl",
    "original/consolidated.00.pth",
]


@pytest.mark.parametrize("name", PICKLES)
def test_pickled_weights_alone_are_refused_and_never_unpickled(base: Path, tmp_path: Path, name: str) -> None:
    (base / "model.safetensors").unlink()
    _pickle(base / name, tmp_path)
    with pytest.raises(InvalidInput) as caught:
        check_base(base)
    assert refused(caught, "pickle_weights") == (name, None)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", PICKLES)
def test_pickled_weights_beside_safetensors_are_let_be_and_never_unpickled(
    base: Path, tmp_path: Path, name: str
) -> None:
    _pickle(base / name, tmp_path)
    load_base(check_base(base), dtype=torch.float32, device=CPU)
    load_tokenizer(base)
    assert not (tmp_path / "exploded").exists()


def test_pickled_weights_beside_an_index_of_other_names_are_let_be(base: Path, tmp_path: Path) -> None:
    _pickle(base / "pytorch_model.bin", tmp_path)
    weights = base / "weights-1.safetensors"
    (base / "model.safetensors").rename(weights)
    places = dict.fromkeys(load_file(weights), weights.name)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert check_base(base).tensors.keys() == places.keys()


def test_safetensors_within_a_folder_are_not_the_base_s_weights(base: Path, tmp_path: Path) -> None:
    _pickle(base / "pytorch_model.bin", tmp_path)
    (base / "models").mkdir()
    (base / "model.safetensors").rename(base / "models" / "model.safetensors")
    with pytest.raises(InvalidInput) as caught:
        check_base(base)
    assert refused(caught, "pickle_weights") == ("pytorch_model.bin", None)


def test_an_adapter_within_the_base_is_refused_since_its_weights_would_be_loaded(
    base: Path, tmp_path: Path
) -> None:
    _pickle(base / "adapter_model.bin", tmp_path)
    (base / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}')
    with pytest.raises(InvalidInput, match="take it out, or merge it") as caught:
        check_base(base)
    assert refused(caught, "invalid_config") == ("adapter_config.json", None)
    assert not (tmp_path / "exploded").exists()


def _pickle(path: Path, folder: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(Bomb(folder / "exploded")))


def test_what_a_trainer_leaves_beside_the_weights_is_let_be(base: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (base / name).write_bytes(b"never read")
    check_base(base)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_remote_code_is_refused_in_every_configuration(base: Path, name: str) -> None:
    edit_json(base / name, auto_map={"AutoModelForCausalLM": "evil.Model"})
    with pytest.raises(InvalidInput) as caught:
        check_base(base)
    assert refused(caught, "remote_code") == (name, "auto_map")


def test_remote_code_is_found_at_any_depth(base: Path) -> None:
    edit_json(base / "config.json", text_config={"deep": [{"auto_map": {"AutoConfig": "evil.Config"}}]})
    with pytest.raises(InvalidInput) as caught:
        check_base(base)
    assert refused(caught, "remote_code") == ("config.json", "text_config.deep.auto_map")


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["BertForMaskedLM"], "model_type": "bert"},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"model_type": "mistral"},
        {"architectures": None},
        {"architectures": ["LlamaForCausalLM", "EvilForCausalLM"]},
        {"architectures": [["LlamaForCausalLM"]]},
    ],
)
def test_other_architectures_are_refused_with_the_list_of_accepted_ones(
    base: Path, changes: dict[str, object]
) -> None:
    edit_json(base / "config.json", **changes)
    with pytest.raises(InvalidInput, match="Qwen3ForCausalLM") as caught:
        check_base(base)
    assert refused(caught, "unsupported_architecture") == ("config.json", "architectures")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes 4-bit"),
        (
            {"quant_method": "bitsandbytes", "_load_in_8bit": True, "load_in_4bit": False},
            "bitsandbytes 8-bit",
        ),
        ({"load_in_8bit": True}, "bitsandbytes 8-bit"),
        ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
        ({"quant_method": "awq"}, "AWQ"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "a-newer-one"}, "a-newer-one"),
        ({"bits": 4}, "quantised"),
        (["odd"], "quantised"),
    ],
)
def test_quantised_models_are_refused_by_method_with_what_to_give_instead(
    base: Path, settings: object, named: str
) -> None:
    edit_json(base / "config.json", quantization_config=settings)
    with pytest.raises(InvalidInput, match=f"{named}.*base that was quantised.*QLoRA") as caught:
        check_base(base)
    assert refused(caught, "quantized_model") == ("config.json", "quantization_config")


@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_positions_that_depend_on_the_documents_beside_are_refused(base: Path, field: str, key: str) -> None:
    edit_json(base / "config.json", **{field: {key: "dynamic", "factor": 2.0}})
    with pytest.raises(InvalidInput, match="dynamic") as caught:
        check_base(base)
    assert refused(caught, "unsupported_architecture") == ("config.json", field)


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [
        ("MixtralForCausalLM", "mixtral"),
        ("Qwen3MoeForCausalLM", "qwen3_moe"),
        ("LlavaForConditionalGeneration", "llava"),
        ("GptOssForCausalLM", "gpt_oss"),
    ],
)
def test_experts_and_multimodal_models_are_refused_by_name(
    base: Path, architecture: str, model_type: str
) -> None:
    edit_json(base / "config.json", architectures=[architecture], model_type=model_type)
    with pytest.raises(InvalidInput, match=architecture) as caught:
        check_base(base)
    assert refused(caught, "unsupported_architecture") == ("config.json", "architectures")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(base: Path, name: str) -> None:
    (base / name).unlink()
    with pytest.raises(InvalidInput) as caught:
        check_base(base)
    assert refused(caught, "missing_file") == (name, None)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_base(tmp_path / "nothing")
    assert refused(caught, "missing_file") == ("nothing", None)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff{}", b'{"a":' * 200_000, b'{"a": "' + b"x" * (5 * 2**20) + b'"}']
)
def test_a_configuration_that_is_no_bounded_json_object_is_refused(base: Path, content: bytes) -> None:
    (base / "config.json").write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        check_base(base)
    assert refused(caught, "invalid_config") == ("config.json", None)


@pytest.mark.parametrize("kept", [0, 4, 100, 5_000])
def test_truncated_safetensors_are_refused(base: Path, kept: int) -> None:
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InvalidInput) as caught:
        check_base(base)
    assert refused(caught, "invalid_safetensors")[0] == "model.safetensors"


def _first(header: dict[str, object], **changes: object) -> dict[str, object]:
    name = next(name for name in header if name != "__metadata__")
    return header | {name: header[name] | changes}  # type: ignore[operator]


@pytest.mark.parametrize(
    "change",
    [
        lambda header: _first(header, shape=[2**40, 2**40]),
        lambda header: _first(header, shape=[-1]),
        lambda header: _first(header, shape="32"),
        lambda header: _first(header, dtype="F8_E4M3"),
        lambda header: _first(header, data_offsets=[0, 2**60]),
        lambda header: _first(header, data_offsets=[4]),
        lambda header: header | {"extra": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        lambda header: header | {"extra": None},
        lambda _: [],
        lambda _: b"\xff\xfe",
        lambda _: b'{"a": {}, "a": {}}',
    ],
    ids=["huge", "negative", "text", "dtype", "beyond", "half", "overlap", "null", "list", "bytes", "twice"],
)
def test_a_lying_header_is_refused(base: Path, change: object) -> None:
    rewrite_header(base / "model.safetensors", change)
    with pytest.raises(InvalidInput) as caught:
        check_base(base)
    assert refused(caught, "invalid_safetensors")[0] == "model.safetensors"


def test_data_behind_the_last_tensor_is_refused(base: Path) -> None:
    with (base / "model.safetensors").open("ab") as stream:
        stream.write(b"polyglot")
    with pytest.raises(InvalidInput, match="whole file") as caught:
        check_base(base)
    refused(caught, "invalid_safetensors")


def test_a_link_out_of_the_folder_is_refused(base: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (base / "special_tokens_map.json").symlink_to(secret)
    with pytest.raises(InvalidInput) as caught:
        check_base(base)
    assert refused(caught, "unsafe_file") == ("special_tokens_map.json", None)


def test_a_link_within_the_folder_is_accepted(base: Path) -> None:
    (base / "model.safetensors").rename(base / "blob")
    (base / "model.safetensors").symlink_to("blob")
    check_base(base)


def shard(base: Path) -> dict[str, str]:
    """Split the weights over two files with an index; which file holds what."""
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, base / file, metadata={"format": "pt"})
    placed = {name: file for file, held in parts.items() for name in held}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return placed


def test_sharded_weights_load_like_whole_ones(base: Path, tiny_llama: Path) -> None:
    shard(base)
    ours = load_base(check_base(base), dtype=torch.float32, device=CPU).state_dict()
    whole = load_base(check_base(tiny_llama), dtype=torch.float32, device=CPU).state_dict()
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


@pytest.mark.parametrize("place", ["../outside.safetensors", "/etc/passwd", "a.bin", 3, None])
def test_an_index_that_points_elsewhere_is_refused(base: Path, place: object) -> None:
    placed = shard(base)
    placed[next(iter(placed))] = place  # type: ignore[assignment]
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(InvalidInput) as caught:
        check_base(base)
    assert refused(caught, "invalid_config") == ("model.safetensors.index.json", "weight_map")


def test_an_index_whose_file_is_missing_is_refused(base: Path) -> None:
    shard(base)
    (base / "b.safetensors").unlink()
    with pytest.raises(InvalidInput) as caught:
        check_base(base)
    assert refused(caught, "missing_file") == ("b.safetensors", None)


def test_an_index_of_a_tensor_that_no_file_holds_is_refused(base: Path) -> None:
    placed = shard(base) | {"model.ghost": "a.safetensors"}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(InvalidInput) as caught:
        check_base(base)
    assert refused(caught, "invalid_safetensors") == ("model.safetensors.index.json", "model.ghost")


def test_weights_that_lack_a_tensor_are_refused_instead_of_being_made_up(base: Path) -> None:
    edit_tensors(base / "model.safetensors", remove=("model.norm.weight",))
    with pytest.raises(InvalidInput) as caught:
        build_meta_base(check_base(base))
    refused(caught, "base_weights_mismatch")
    with pytest.raises(InvalidInput) as caught:
        load_base(check_base(base), dtype=torch.float32, device=CPU)
    assert refused(caught, "base_weights_mismatch") == ("model.safetensors", "model.norm.weight")


def test_weights_with_a_tensor_too_many_are_refused(base: Path) -> None:
    edit_tensors(base / "model.safetensors", **{"model.extra.weight": np.zeros(3, np.float32)})
    with pytest.raises(InvalidInput) as caught:
        load_base(check_base(base), dtype=torch.float32, device=CPU)
    assert refused(caught, "base_weights_mismatch") == ("model.safetensors", "model.extra.weight")


def test_weights_of_another_shape_are_refused(base: Path) -> None:
    edit_tensors(base / "model.safetensors", **{"model.norm.weight": np.zeros(64, np.float32)})
    with pytest.raises(InvalidInput) as caught:
        load_base(check_base(base), dtype=torch.float32, device=CPU)
    assert refused(caught, "base_weights_mismatch") == ("model.safetensors", "model.norm.weight")


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"num_hidden_layers": 10**9}, "num_hidden_layers"), ({"vocab_size": 10**9}, None)],
)
def test_a_configuration_cannot_ask_for_memory_that_no_weight_backs(
    base: Path, changes: dict[str, object], field: str | None
) -> None:
    edit_json(base / "config.json", **changes, **({"layer_types": None}))
    with pytest.raises(InvalidInput) as caught:
        build_meta_base(check_base(base))
    assert refused(caught, "base_weights_mismatch") == ("config.json", field)


@pytest.mark.parametrize("changes", [{"num_attention_heads": 0}, {"hidden_act": "no_such"}])
def test_a_configuration_that_cannot_be_built_is_refused(base: Path, changes: dict[str, object]) -> None:
    edit_json(base / "config.json", **changes)
    with pytest.raises(InvalidInput) as caught:
        build_meta_base(check_base(base))
    assert refused(caught, "invalid_config") == ("config.json", None)


def test_a_damaged_tokenizer_is_refused(base: Path) -> None:
    (base / "tokenizer.json").write_text('{"model": {"type": "Nonsense"}}')
    with pytest.raises(InvalidInput) as caught:
        load_tokenizer(base)
    assert refused(caught, "invalid_tokenizer") == ("tokenizer.json", None)
