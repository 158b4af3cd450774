"""Which files belong to a model, and the digest that tells one input from another."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomscope.input_files import (
    ADAPTER_FILES,
    MODEL_FILES,
    file_digest,
    folder_digest,
    is_adapter_file,
    is_model_file,
)

NAMES = st.text("abc.-_", min_size=1, max_size=8)
DIGESTS = st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}")


@pytest.mark.parametrize(
    "name",
    [
        *sorted(MODEL_FILES), "model.safetensors", "model-00001-of-00002.safetensors",
        "model.safetensors.index.json", "_x.safetensors",
    ],
)  # fmt: skip
def test_weights_and_known_files_belong_to_a_model(name: str) -> None:
    assert is_model_file(name)


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin", "model.pt", "model.pkl", "model.gguf", "modeling_llama.py", "README.md",
        ".gitattributes", ".safetensors", "model.safetensors.exe", "model.safetensors\n", "a b.safetensors",
        "model.safetensors.index.json.bak", "../model.safetensors", "onnx/model.safetensors", "",
        "-rf.safetensors", "CONFIG.JSON", "config.json ", "Config.json", "model.SAFETENSORS",
    ],
)  # fmt: skip
def test_code_pickles_and_odd_names_do_not(name: str) -> None:
    assert not is_model_file(name)


def test_an_adapter_is_its_config_and_its_weights() -> None:
    assert {"adapter_config.json", "adapter_model.safetensors"} == ADAPTER_FILES
    assert all(map(is_adapter_file, ADAPTER_FILES))


def test_to_an_adapter_belongs_the_template_beside_it_and_nothing_else_of_its_folder() -> None:
    assert is_adapter_file("chat_template.jinja")
    beside = ("tokenizer_config.json", "README.md", "adapter_model.bin", "training_args.bin", "")
    assert not any(map(is_adapter_file, beside))


@pytest.mark.parametrize("size", [0, 1, 3 << 20])
def test_a_file_has_its_sha256(tmp_path: Path, size: int) -> None:
    content = (b"atomscope" * (size // 9 + 1))[:size]
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_folder_has_the_digest_of_its_sorted_lines() -> None:
    one, other = hashlib.sha256(b"1").hexdigest(), hashlib.sha256(b"2").hexdigest()
    lines = "".join(sorted([f"{one}  b.json\n", f"{other}  a.json\n"]))
    assert folder_digest({"b.json": one, "a.json": other}) == hashlib.sha256(lines.encode()).hexdigest()
    assert folder_digest({}) == hashlib.sha256(b"").hexdigest()


@given(files=st.dictionaries(NAMES, DIGESTS, max_size=4), others=st.dictionaries(NAMES, DIGESTS, max_size=4))
def test_two_folders_share_a_digest_when_they_are_equal_in_names_and_content(
    files: dict[str, str], others: dict[str, str]
) -> None:
    assert (folder_digest(files) == folder_digest(others)) == (files == others)
    assert folder_digest(dict(reversed(files.items()))) == folder_digest(files)
