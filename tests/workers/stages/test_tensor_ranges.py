"""Tensors read one by one out of a safetensors file are those that were saved, and no other byte is read."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from atomscope_workers.stages.tensor_ranges import TensorRanges

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)

tensors = st.dictionaries(
    st.text("abz/._é", min_size=1, max_size=8),
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), min_size=1, max_size=3)),
    min_size=1,
    max_size=4,
)


class _Counted:
    """A file's bytes, and how many were asked for."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self.asked = 0

    def __call__(self, start: int, length: int) -> bytearray:
        assert start + length <= len(self.data)
        self.asked += length
        return bytearray(self.data[start : start + length])


@settings(deadline=None, max_examples=50)
@given(shapes=tensors, data=st.data())
def test_each_tensor_and_any_rows_of_it_come_as_they_were_saved(
    shapes: dict[str, tuple[torch.dtype, list[int]]], data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(0)
    saved = {
        name: (100 * torch.randn(shape, generator=generator)).to(dtype)
        for name, (dtype, shape) in shapes.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        save_file(saved, Path(folder) / "file", metadata={"what": "größer"})
        read = _Counted(Path(folder) / "file")
    file = TensorRanges(read)
    assert file.metadata == {"what": "größer"}
    for name, tensor in saved.items():
        assert file.shape(name) == tuple(tensor.shape)
        before = read.asked
        found = file.tensor(name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
        assert read.asked - before == tensor.numel() * tensor.itemsize
        start = data.draw(st.integers(0, len(tensor)))
        stop = data.draw(st.integers(start, len(tensor)))
        before = read.asked
        assert torch.equal(file.rows(name, start, stop), tensor[start:stop])
        assert read.asked - before == tensor[start:stop].numel() * tensor.itemsize


def test_a_file_of_another_format_is_refused_before_it_is_read() -> None:
    with pytest.raises(ValueError, match="no header of safetensors"):
        TensorRanges(lambda start, length: bytearray(struct.pack("<Q", 2**40)))


def test_a_dtype_that_no_stage_writes_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, dtype=torch.int16)}, tmp_path / "file")
    with pytest.raises(ValueError, match="'a' holds I16"):
        TensorRanges(_Counted(tmp_path / "file")).tensor("a")


def test_a_tensor_that_is_not_there_or_was_not_wanted_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2), "b": torch.ones(2)}, tmp_path / "file")
    read = _Counted(tmp_path / "file")
    with pytest.raises(KeyError, match="other"):
        TensorRanges(read).tensor("other")
    file = TensorRanges(read, {"b"})
    assert file.tensor("b").tolist() == [1, 1]
    with pytest.raises(KeyError, match="a"):
        file.tensor("a")
