"""Adapters as trainers leave them: folders, settings and names accepted as they are, or refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from atomscope.errors import InvalidInput
from atomscope_workers.models.adapter import check_adapter
from atomscope_workers.models.load import load_lora_model
from tests.fixtures.models import TinyAdapterFactory
from tests.workers.models.damage import copy_of, edit_json, refused
from tests.workers.models.reference import CPU, check_gradients, documents, peft_model
from tests.workers.models.trainers import CONFIGS, TRAINERS, leave

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def adapter(plain_adapter: Path, tmp_path: Path) -> Path:
    return copy_of(plain_adapter, tmp_path / "adapter")


def rename(folder: Path, change: Callable[[str], str]) -> dict[str, str]:
    """Rename the tensors of an adapter; new name by old one."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    save_file({change(name): tensor for name, tensor in tensors.items()}, folder / WEIGHTS)
    return {name: change(name) for name in tensors}


def add(folder: Path, **tensors: Any) -> None:
    held = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    save_file(held | tensors, folder / WEIGHTS)


# ------------------------------------------------------------------------ folders


@pytest.mark.parametrize("trainer", list(TRAINERS))
def test_a_trainers_folder_is_accepted_and_nothing_but_the_adapter_is_opened(
    adapter: Path, tiny_llama: Path, trainer: str
) -> None:
    leave(adapter, TRAINERS[trainer])
    loaded = load_lora_model(tiny_llama, adapter, dtype=torch.float32, device=CPU)
    assert len(loaded.parameters) == 8


def test_links_and_folders_beside_the_adapter_do_no_harm(adapter: Path, tmp_path: Path) -> None:
    (adapter / "latest").symlink_to(tmp_path)
    (adapter / "loop").symlink_to(adapter)
    check_adapter(adapter)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_link_out_of_the_folder_is_refused(adapter: Path, tmp_path: Path, name: str) -> None:
    (adapter / name).rename(tmp_path / name)
    (adapter / name).symlink_to(tmp_path / name)
    with pytest.raises(InvalidInput) as caught:
        check_adapter(adapter)
    assert refused(caught, "unsafe_file") == (name, None)


def test_weights_that_are_only_a_pickle_are_refused(adapter: Path) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(InvalidInput, match="safetensors") as caught:
        check_adapter(adapter)
    assert refused(caught, "pickle_weights") == ("adapter_model.bin", None)


def test_a_folder_of_checkpoints_alone_is_refused_with_their_names(adapter: Path, tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-20"):
        shutil.copytree(adapter, tmp_path / "run" / name)
    with pytest.raises(InvalidInput, match="checkpoint-10, checkpoint-20: give one of those") as caught:
        check_adapter(tmp_path / "run")
    assert refused(caught, "missing_file") == (WEIGHTS, None)
    check_adapter(tmp_path / "run" / "checkpoint-20")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(adapter: Path, name: str) -> None:
    (adapter / name).unlink()
    with pytest.raises(InvalidInput) as caught:
        check_adapter(adapter)
    assert refused(caught, "missing_file") == (name, None)


# ------------------------------------------------------------------ configurations


@pytest.mark.parametrize("trainer", list(CONFIGS))
def test_a_configuration_that_means_plain_lora_is_accepted(
    adapter: Path, plain_adapter: Path, tiny_llama: Path, trainer: str
) -> None:
    edit_json(adapter / CONFIG, **CONFIGS[trainer])
    loaded = load_lora_model(tiny_llama, adapter, dtype=torch.float32, device=CPU)
    check_gradients(loaded, peft_model(tiny_llama, plain_adapter), documents(2))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [1, 2]),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("lora_bias", True),
        ("bias", "all"),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("alora_invocation_tokens", [5]),
        ("arrow_config", {"top_k": 3}),
        ("ensure_weight_tying", True),
        ("megatron_config", {"tp": 2}),
        ("runtime_config", {"ephemeral_gpu_offload": True}),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "lora_ga"),
        ("peft_type", "ADALORA"),
        ("peft_type", "LOHA"),
        ("task_type", "SEQ_CLS"),
        ("a_newer_switch", True),
        ("a_newer_table", {"on": False, "scale": 2}),
        ("enable_lora", [True, False, True]),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_the_settings_name(
    adapter: Path, field: str, value: object
) -> None:
    edit_json(adapter / CONFIG, **{field: value})
    with pytest.raises(InvalidInput) as caught:
        check_adapter(adapter)
    assert refused(caught, "unsupported_adapter") == (CONFIG, field)


@pytest.mark.parametrize(
    "mapping",
    [
        {"base_model_class": "Model", "parent_library": "transformers_modules.evil.modeling"},
        {"base_model_class": "Model", "parent_library": "os"},
        {"base_model_class": "Model", "parent_library": "transformers/../evil"},
        {"base_model_class": "Model"},
        {"base_model_class": ["Model"], "parent_library": "transformers.models"},
        ["transformers"],
    ],
)
def test_an_auto_mapping_to_other_code_is_refused(adapter: Path, mapping: object) -> None:
    edit_json(adapter / CONFIG, auto_mapping=mapping)
    with pytest.raises(InvalidInput) as caught:
        check_adapter(adapter)
    assert refused(caught, "remote_code") == (CONFIG, "auto_mapping")


def test_remote_code_in_the_adapters_configuration_is_refused(adapter: Path) -> None:
    edit_json(adapter / CONFIG, auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(InvalidInput) as caught:
        check_adapter(adapter)
    assert refused(caught, "remote_code") == (CONFIG, "auto_map")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0),
        ("lora_alpha", "16"),
        ("use_rslora", "yes"),
        ("fan_in_fan_out", 2),
        ("target_modules", []),
        ("target_modules", None),
        ("rank_pattern", {"(a+)+b": 2}),
        ("alpha_pattern", {"_orig_mod.model.layers.0.self_attn.q_proj": 2}),
    ],
)
def test_a_setting_of_another_kind_is_refused(adapter: Path, field: str, value: object) -> None:
    edit_json(adapter / CONFIG, **{field: value})
    with pytest.raises(InvalidInput) as caught:
        check_adapter(adapter)
    assert refused(caught, "invalid_config") == (CONFIG, field)


def test_fan_in_fan_out_must_fit_the_layers(adapter: Path, tiny_llama: Path) -> None:
    edit_json(adapter / CONFIG, fan_in_fan_out=True)
    with pytest.raises(InvalidInput, match=r"torch\.nn\.Linear") as caught:
        load_lora_model(tiny_llama, adapter, dtype=torch.float32, device=CPU)
    assert refused(caught, "invalid_config") == (CONFIG, "fan_in_fan_out")


# ------------------------------------------------------------------------- tensors


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda name: name.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."),
        lambda name: name.replace(".self_attn.", "._fsdp_wrapped_module.self_attn."),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace("base_model.model.model.", "base_model.model."),
        lambda name: name.replace("base_model.model.model.", "base_model.model.model.language_model."),
        lambda name: name.replace("base_model.model.model.", "base_model.model.language_model.model."),
        lambda name: name.replace("base_model.model.model.", "base_model.model.language_model."),
    ],
    ids=[
        "adapter_name", "compiled", "ddp", "compiled_inside", "checkpointing", "fsdp", "bare", "headless",
        "multimodal", "older_multimodal", "headless_multimodal",
    ],
)  # fmt: skip
def test_names_that_trainers_change_are_read_and_kept(
    adapter: Path, plain_adapter: Path, tiny_llama: Path, change: Callable[[str], str]
) -> None:
    names = rename(adapter, change)
    loaded = load_lora_model(tiny_llama, adapter, dtype=torch.float32, device=CPU)
    plain = load_lora_model(tiny_llama, plain_adapter, dtype=torch.float32, device=CPU)
    assert [item.name for item in loaded.parameters] == sorted(names.values())
    assert set(names) != set(names.values())
    by_name = {item.name: item.linear.weight for item in loaded.parameters}
    for item in plain.parameters:
        assert torch.equal(by_name[names[item.name]], item.linear.weight)
    ids = torch.tensor([[1, 20, 40, 60, 80, 5, 2]])
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=ids).logits, plain.model(input_ids=ids).logits)


def test_patterns_follow_the_names_of_the_model_that_was_trained(
    tiny_llama: Path, tiny_adapter: TinyAdapterFactory
) -> None:
    layer = r"model\.layers\.0\.self_attn\.q_proj"
    folder = tiny_adapter(rank_pattern={layer: 2}, alpha_pattern={layer: 64})
    plain = load_lora_model(tiny_llama, folder, dtype=torch.float32, device=CPU)
    rename(folder, lambda name: name.replace("model.model.model.", "model.model.model.language_model."))
    deep = r"model\.language_model\.layers\.0\.self_attn\.q_proj"
    edit_json(folder / CONFIG, rank_pattern={deep: 2}, alpha_pattern={deep: 64})
    inner = load_lora_model(tiny_llama, folder, dtype=torch.float32, device=CPU)
    ids = torch.tensor([[1, 20, 40, 60, 80, 5, 2]])
    with torch.no_grad():
        assert torch.equal(inner.model(input_ids=ids).logits, plain.model(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embedding"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", "bias"),
        ("base_model.model.lm_head.modules_to_save.weight", "fully trained"),
        ("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight", "saved base weight"),
        ("base_model.model.model.layers.0.self_attn.q_proj.base_layer.lora_A.weight", "another adapter"),
        ("base_model.model.base_model.model.model.layers.0.q_proj.lora_A.weight", "another adapter"),
        ("base_model.model.model.norm.weight", "lora_A"),
        ("model.layers.0.self_attn.q_proj.lora_a", "lora_A"),
        ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", "trained token"),
    ],
)
def test_tensors_that_are_no_plain_lora_are_refused_by_name(adapter: Path, name: str, word: str) -> None:
    add(adapter, **{name: np.ones((3, 3), np.float32)})
    with pytest.raises(InvalidInput, match=word) as caught:
        check_adapter(adapter)
    assert refused(caught, "unsupported_adapter") == (WEIGHTS, name)


def test_a_file_of_two_adapters_is_refused(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    (adapter / WEIGHTS).unlink()
    save_file(
        {name.replace(".weight", f".{which}.weight"): t for which in "ab" for name, t in tensors.items()},
        adapter / WEIGHTS,
    )
    with pytest.raises(InvalidInput, match="several adapters"):
        check_adapter(adapter)


def test_one_matrix_under_two_names_is_refused(adapter: Path) -> None:
    add(adapter, **{f"_orig_mod.{FIRST}": load_file(adapter / WEIGHTS)[FIRST]})
    with pytest.raises(InvalidInput, match="same matrix") as caught:
        check_adapter(adapter)
    assert refused(caught, "invalid_safetensors")[0] == WEIGHTS


def test_two_names_for_one_layer_of_the_base_are_refused(adapter: Path, tiny_llama: Path) -> None:
    pair = {name: t for name, t in load_file(adapter / WEIGHTS).items() if ".0.self_attn.q_proj." in name}
    old, new = "model.model.model.", "model.model.model.language_model."
    add(adapter, **{name.replace(old, new): tensor for name, tensor in pair.items()})
    with pytest.raises(InvalidInput, match="could mean") as caught:
        load_lora_model(tiny_llama, adapter, dtype=torch.float32, device=CPU)
    assert refused(caught, "unsupported_adapter") == (WEIGHTS, FIRST)


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.replace("q_proj", "qkv_proj"),
        lambda name: name.replace(".layers.", ".blocks."),
        lambda name: name.replace("model.model.model.", "model.model.vision_tower."),
        lambda name: name.replace(".layers.0.", ".layers.7."),
    ],
)
def test_layers_that_the_base_lacks_are_named(
    adapter: Path, tiny_llama: Path, change: Callable[[str], str]
) -> None:
    new = rename(adapter, change)[FIRST]
    with pytest.raises(InvalidInput) as caught:
        load_lora_model(tiny_llama, adapter, dtype=torch.float32, device=CPU)
    assert caught.value.code == "adapter_base_mismatch"
    assert new in {problem.field for problem in caught.value.problems}


def test_a_target_without_its_lora_is_named(adapter: Path, tiny_llama: Path) -> None:
    edit_json(adapter / CONFIG, target_modules=["q_proj", "v_proj", "o_proj"])
    with pytest.raises(InvalidInput, match="target_modules") as caught:
        load_lora_model(tiny_llama, adapter, dtype=torch.float32, device=CPU)
    assert "o_proj" in (refused(caught, "adapter_base_mismatch")[1] or "")


def test_a_lora_on_something_else_than_a_linear_layer_is_refused(adapter: Path, tiny_llama: Path) -> None:
    name = "base_model.model.model.embed_tokens.lora_{}.weight"
    ones = np.ones((4, 32), np.float32)
    add(adapter, **{name.format("A"): ones, name.format("B"): np.ascontiguousarray(ones.T)})
    with pytest.raises(InvalidInput, match="Embedding") as caught:
        load_lora_model(tiny_llama, adapter, dtype=torch.float32, device=CPU)
    assert refused(caught, "unsupported_adapter") == (WEIGHTS, name.format("A"))


def test_dtypes_may_differ_within_a_file(adapter: Path, tiny_llama: Path) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    mixed = {
        name: torch.from_numpy(tensor).to(kinds[number % 3])
        for number, (name, tensor) in enumerate(sorted(load_file(adapter / WEIGHTS).items()))
    }
    (adapter / WEIGHTS).unlink()
    save_torch(mixed, adapter / WEIGHTS)
    loaded = load_lora_model(tiny_llama, adapter, dtype=torch.float32, device=CPU)
    for item in loaded.parameters:
        assert torch.equal(item.linear.weight, mixed[item.name].float())
    check_gradients(loaded, peft_model(tiny_llama, adapter), documents(2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(adapter: Path, value: float) -> None:
    tensors = load_file(adapter / WEIGHTS)
    tensors[FIRST][1, 2] = value
    (adapter / WEIGHTS).unlink()
    save_file(tensors, adapter / WEIGHTS)
    with pytest.raises(InvalidInput) as caught:
        check_adapter(adapter)
    assert refused(caught, "non_finite_adapter") == (WEIGHTS, FIRST)


# ---------------------------------------------------- copies of the base's weights


def test_the_heads_own_weights_beside_a_lora_are_let_be_and_are_no_parameter(
    tiny_llama: Path, tiny_adapter: TinyAdapterFactory
) -> None:
    folder = tiny_adapter(("q_proj", "lm_head"), save_embedding_layers=True)
    held = load_file(folder / WEIGHTS)
    copy = "base_model.model.lm_head.base_layer.weight"
    assert copy in held
    checked = check_adapter(folder)
    assert copy not in checked.tensors
    loaded = load_lora_model(tiny_llama, folder, dtype=torch.float32, device=CPU)
    assert {item.name for item in loaded.parameters} == {name for name in held if ".lora_" in name}


def test_embeddings_saved_with_a_plain_lora_are_let_be_where_they_are_the_bases(
    adapter: Path, tiny_llama: Path
) -> None:
    table = load_file(tiny_llama / "model.safetensors")["model.embed_tokens.weight"]
    add(adapter, **{"base_model.model.model.embed_tokens.weight": table.astype(np.float32)})
    load_lora_model(tiny_llama, adapter, dtype=torch.bfloat16, device=CPU)


@pytest.mark.parametrize("change", [lambda t: t + 0.01, lambda t: np.concatenate([t, t[:2]])])
def test_trained_or_resized_embeddings_are_refused(
    adapter: Path, tiny_llama: Path, change: Callable[[Any], Any]
) -> None:
    name = "base_model.model.model.embed_tokens.weight"
    table = load_file(tiny_llama / "model.safetensors")["model.embed_tokens.weight"]
    add(adapter, **{name: change(table)})
    with pytest.raises(InvalidInput) as caught:
        load_lora_model(tiny_llama, adapter, dtype=torch.float32, device=CPU)
    assert refused(caught, "unsupported_adapter") == (WEIGHTS, name)
