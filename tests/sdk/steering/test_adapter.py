"""A steered adapter as a PEFT folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from atomscope.errors import SteeringError
from atomscope.steering import (
    CONFIG,
    PROVENANCE,
    VECTOR,
    WEIGHTS,
    BaseModel,
    Source,
    SteeredAdapter,
    Target,
    norm,
    read_metadata,
    read_tensors,
    steer_folder,
)

CONFIG_TEXT = b'{"peft_type": "LORA",\n   "r": 2, "unknown": [1, 2]}'
NAMES = ("base_model.model.a.lora_A.weight", "base_model.model.a.lora_B.weight")


def tensors(seed: int, dtype: Any = np.float32) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=(2, 3)).astype(dtype) for name in NAMES}


FILES = (CONFIG, WEIGHTS, PROVENANCE)
"""Of the format `adapter`."""


def steered_of(adapter: Path, vector: Any, strength: float, **how: Any) -> SteeredAdapter:
    """The adapter, moved along the vector of one atom."""
    atom = Target("atom", 4)
    base = BaseModel(id="mdl_1", name="tiny", sha256="a" * 64)
    return steer_folder(adapter, {atom: vector}, {atom: strength}, Source("aud_1", "0", base), **how)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / CONFIG).write_bytes(CONFIG_TEXT)
    (folder / "README.md").write_text("not taken along")
    save_file(tensors(0, ml_dtypes.bfloat16), folder / WEIGHTS, {"format": "pt"})
    return folder


@pytest.fixture
def steered(adapter: Path) -> SteeredAdapter:
    return steered_of(adapter, tensors(1), 0.1)


def test_a_save_is_a_peft_folder_that_says_where_it_came_from(
    steered: SteeredAdapter, adapter: Path, tmp_path: Path
) -> None:
    out = steered.save(tmp_path / "new" / "out")
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert (out / CONFIG).read_bytes() == CONFIG_TEXT
    found = read_tensors(out / WEIGHTS)
    assert {tensor.dtype for tensor in found.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert all((found[name] == steered.tensors[name]).all() for name in NAMES)
    provenance = json.loads((out / PROVENANCE).read_text())
    size = norm(tensors(0, ml_dtypes.bfloat16))
    assert provenance.pop("factors") == {"4": pytest.approx(0.1 * size / norm(tensors(1)))}
    assert provenance.pop("adapter_norm") == pytest.approx(size)
    assert provenance.pop("step_norm") == pytest.approx(0.1 * size)
    assert provenance == {
        "audit_id": "aud_1",
        "format": "adapter",
        "strengths": {"4": 0.1},
        "unit": "norm",
        "power": "0",
        "second_order": None,
        "base_model": {"id": "mdl_1", "name": "tiny", "sha256": "a" * 64},
        "adapter_sha256": hashlib.sha256((adapter / WEIGHTS).read_bytes()).hexdigest(),
        "direction": "adding a vector raises its behaviour",
        "format_version": 1,
    }


def test_a_vector_is_what_was_added_and_says_where_it_came_from(
    adapter: Path, steered: SteeredAdapter, tmp_path: Path
) -> None:
    out = steered_of(adapter, tensors(1), 0.1, format="vector").save(tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == sorted([VECTOR, PROVENANCE])
    step = read_tensors(out / VECTOR)
    before = read_tensors(adapter / WEIGHTS)
    for name in NAMES:
        assert step[name].dtype == np.float32
        moved = (before[name].astype(np.float64) + step[name]).astype(ml_dtypes.bfloat16)
        assert (moved == steered.tensors[name]).all()
    told = json.loads(read_metadata(out / VECTOR)["atomscope"])
    assert told == json.loads((out / PROVENANCE).read_text())
    assert told["format"] == "vector"
    assert told["step_norm"] == pytest.approx(norm(step), rel=1e-6)


def test_a_save_in_another_format_leaves_nothing_of_the_one_before(
    adapter: Path, steered: SteeredAdapter, tmp_path: Path
) -> None:
    out = steered.save(tmp_path / "out")
    (out / f"{WEIGHTS}.partial").touch()
    steered_of(adapter, tensors(1), 0.1, format="vector").save(out)
    assert sorted(path.name for path in out.iterdir()) == sorted([VECTOR, PROVENANCE])


def test_the_same_steering_gives_the_same_bytes(adapter: Path, tmp_path: Path) -> None:
    saves = [steered_of(adapter, tensors(1), 0.1).save(tmp_path / name) for name in "ab"]
    assert all((saves[0] / name).read_bytes() == (saves[1] / name).read_bytes() for name in FILES)


def test_strength_zero_saves_the_tensors_as_they_were(adapter: Path, tmp_path: Path) -> None:
    out = steered_of(adapter, tensors(1), 0.0).save(tmp_path / "out")
    before, after = read_tensors(adapter / WEIGHTS), read_tensors(out / WEIGHTS)
    assert {name: after[name].tobytes() for name in NAMES} == {name: before[name].tobytes() for name in NAMES}


def test_the_adapter_itself_is_left_alone(steered: SteeredAdapter, adapter: Path) -> None:
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    with pytest.raises(SteeringError, match="not empty"):
        steered.save(adapter)
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before


def test_an_earlier_save_is_replaced(adapter: Path, steered: SteeredAdapter, tmp_path: Path) -> None:
    out = steered.save(tmp_path / "out")
    first = (out / WEIGHTS).read_bytes()
    (out / f"{WEIGHTS}.partial").write_bytes(b"left by a save that broke off")
    steered_of(adapter, tensors(1), -3.0).save(out)
    assert (out / WEIGHTS).read_bytes() != first
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)


def test_a_save_that_broke_off_can_be_repeated(
    steered: SteeredAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("atomscope.steering.adapter.write_tensors", fail)
    with pytest.raises(SteeringError, match="No space left"):
        steered.save(tmp_path / "out")
    monkeypatch.undo()
    assert not (tmp_path / "out" / WEIGHTS).exists()
    steered.save(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)


@pytest.mark.parametrize("names", [["notes.txt"], [CONFIG], [CONFIG, WEIGHTS], [PROVENANCE, "notes.txt"]])
def test_a_folder_of_something_else_is_refused(
    steered: SteeredAdapter, tmp_path: Path, names: list[str]
) -> None:
    for name in names:
        (tmp_path / name).write_text("kept")
    with pytest.raises(SteeringError, match="not empty"):
        steered.save(tmp_path)
    assert all((tmp_path / name).read_text() == "kept" for name in names)


def test_a_file_is_no_folder(steered: SteeredAdapter, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SteeringError, match="not a folder"):
        steered.save(tmp_path / "file")
    with pytest.raises(SteeringError, match="cannot write"):
        steered.save(tmp_path / "file" / "below")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(adapter: Path, name: str) -> None:
    (adapter / name).unlink()
    with pytest.raises(SteeringError, match=f"{name} is missing"):
        steered_of(adapter, tensors(1), 0.1)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"no json", b"\xff", b"[" * 100_000, b" " * (1 << 20) + b"{}"]
)
def test_a_damaged_config_is_refused(adapter: Path, content: bytes) -> None:
    (adapter / CONFIG).write_bytes(content)
    with pytest.raises(SteeringError, match=CONFIG):
        steered_of(adapter, tensors(1), 0.1)


def test_peft_loads_what_was_saved(steered: SteeredAdapter, tmp_path: Path) -> None:
    from peft.utils.save_and_load import load_peft_weights

    out = steered.save(tmp_path / "out")
    loaded = load_peft_weights(str(out), device="cpu")
    for name in NAMES:
        assert str(loaded[name].dtype) == "torch.bfloat16"
        assert (loaded[name].float().numpy() == steered.tensors[name].astype(np.float32)).all()


def test_marks_of_wrappers_are_gone_from_what_is_saved_and_kept_in_memory(
    adapter: Path, tmp_path: Path
) -> None:
    own = {name.replace(".weight", ".default.weight"): value for name, value in tensors(0).items()}
    save_file(own, adapter / WEIGHTS)
    steered = steered_of(adapter, {name: np.ones((2, 3)) for name in own}, 0.5)
    assert steered.tensors.keys() == own.keys()
    assert read_tensors(steered.save(tmp_path / "out") / WEIGHTS).keys() == set(NAMES)


def test_two_adapters_in_one_file_are_refused(adapter: Path) -> None:
    own = {name.replace(".weight", f".{which}.weight"): v for which in "xy" for name, v in tensors(0).items()}
    save_file(own, adapter / WEIGHTS)
    with pytest.raises(SteeringError, match="several adapters"):
        steered_of(adapter, {name: np.ones((2, 3)) for name in own}, 0.5)


def test_copies_of_base_weights_are_neither_moved_nor_counted_in_the_norm(adapter: Path) -> None:
    lora, head = tensors(0), {"base_model.model.lm_head.base_layer.weight": np.full((9, 3), 7, np.float32)}
    vector = tensors(2)
    save_file(lora, adapter / WEIGHTS)
    alone = steered_of(adapter, vector, 0.5).tensors
    (adapter / WEIGHTS).unlink()
    save_file(lora | head, adapter / WEIGHTS)
    beside = steered_of(adapter, vector, 0.5).tensors
    assert beside.keys() == alone.keys() | head.keys()
    assert all((beside[name] == value).all() for name, value in (alone | head).items())


@pytest.mark.parametrize(
    "name", ["base_model.model.e.lora_embedding_A", "base_model.model.q.lora_magnitude_vector"]
)
def test_what_is_no_plain_lora_is_not_steered(adapter: Path, name: str) -> None:
    save_file(tensors(0) | {name: np.ones(3, np.float32)}, adapter / WEIGHTS)
    with pytest.raises(SteeringError, match="plain LoRA"):
        steered_of(adapter, tensors(2), 0.5)
