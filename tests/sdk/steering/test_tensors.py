"""Reading safetensors that were written by the reference library, and refusing hostile ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save, save_file

from atomscope.errors import SteeringError
from atomscope.steering import read_tensors, write_tensors


def file(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def tensor(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_the_reference_library_writes_is_read(tmp_path: Path, dtype: Any) -> None:
    random = np.random.default_rng(0)
    given_tensors = {
        "weight": random.normal(size=(3, 5)).astype(dtype),
        "scalar": np.array(2.5, dtype),
        "empty": np.empty((0, 4), dtype),
    }
    save_file(given_tensors, tmp_path / "a.safetensors", {"format": "pt"})
    found = read_tensors(tmp_path / "a.safetensors")
    assert found.keys() == given_tensors.keys()
    for name, wanted in given_tensors.items():
        assert found[name].dtype == np.dtype(dtype)
        assert found[name].shape == wanted.shape
        assert found[name].tobytes() == wanted.tobytes()
        assert not found[name].flags.writeable


def test_a_file_without_tensors_is_read(tmp_path: Path) -> None:
    assert read_tensors(file(tmp_path / "a", {})) == {}
    assert read_tensors(file(tmp_path / "b", {"a": tensor(shape=[0], offsets=[0, 0])}))["a"].shape == (0,)


def test_what_is_written_is_read_by_the_reference_library(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    transposed = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_tensors({"a": transposed, "b": np.ones(2, ml_dtypes.bfloat16)}, path)
    with safe_open(path, framework="np") as found:
        assert found.metadata() == {"format": "pt"}
        assert (found.get_tensor("a") == transposed).all()
        assert found.get_slice("b").get_dtype() == "BF16"
    with safe_open(path, framework="pt") as found:
        assert found.get_tensor("b").tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        b"\xff" * 8,
        b"\xff" * 64,
        b"\x80\x04\x95pickled rather than safe",
        (100_000_001).to_bytes(8, "little") + b"{}",
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(SteeringError, match=r"^a is not a safetensors file, or is truncated"):
        read_tensors(tmp_path / "a")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"not json",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        {"a": 1},
        {"a": {}},
        {"__metadata__": {"format": 1}},
        {"a": tensor(offsets=[0])},
        {"a": tensor(shape=["1"])},
        {"a": tensor(shape=[1.5])},
    ],
)
def test_a_header_that_does_not_parse_is_refused(tmp_path: Path, header: object) -> None:
    with pytest.raises(SteeringError, match=r"^cannot read a: "):
        read_tensors(file(tmp_path / "a", header, bytes(4)))


@pytest.mark.parametrize(
    "header",
    [
        {"a": tensor(shape=[2])},
        {"a": tensor(shape=[2**70])},
        {"a": tensor(shape=[-1], offsets=[4, 0])},
        {"a": tensor(shape=[-1, -1])},
        {"a": tensor(shape=[2**32, 2**32])},  # wraps round to nothing in 64 bits
        {"a": tensor(shape=[2**32, 2**32], offsets=[0, 0]), "b": tensor()},
        {"a": tensor(offsets=[4, 8])},
        {"a": tensor(offsets=[-4, 0])},
        {"a": tensor(), "b": tensor()},  # two tensors of the same bytes
        {"a": tensor(shape=[0], offsets=[0, 0]), "b": tensor(shape=[1], offsets=[1, 5])},
    ],
)
def test_bytes_that_do_not_fit_a_shape_are_refused(tmp_path: Path, header: object) -> None:
    with pytest.raises(SteeringError, match="do not fit its shape"):
        read_tensors(file(tmp_path / "a", header, bytes(4)))


@pytest.mark.parametrize("size", [0, 3, 5, 100])
def test_more_or_fewer_bytes_than_announced_are_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(SteeringError, match="truncated"):
        read_tensors(file(tmp_path / "a", {"a": tensor()}, bytes(size)))


@pytest.mark.parametrize("dtype", ["I64", "F8_E4M3", "BOOL", "\x1b[31m"])
def test_another_dtype_is_refused_by_name(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(SteeringError, match="accepted: F64, F32, F16, BF16") as raised:
        read_tensors(file(tmp_path / "a", {"a": tensor(dtype)}, bytes(4)))
    assert "\x1b" not in str(raised.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SteeringError, match="cannot read a"):
        read_tensors(tmp_path / "a")


WHOLE = save({"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), np.float16)})


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), st.booleans())
def test_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int, cut: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(WHOLE[:position] if cut else WHOLE[:position] + bytes([byte]) + WHOLE[position + 1 :])
    try:
        found = read_tensors(path)
    except SteeringError:
        return
    assert sum(item.nbytes for item in found.values()) <= len(WHOLE)
