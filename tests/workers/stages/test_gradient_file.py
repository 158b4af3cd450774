"""Gradient shards: what is written by document and parameter is read by document and parameter."""

from __future__ import annotations

import json
import resource
import signal
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from atomscope_workers.pipeline.storage import GradientDtype
from atomscope_workers.stages.gradient_file import GradientShards, GradientWriter

CPU = torch.device("cpu")
SHAPES = {"b.lora_B.weight": (3, 2), "a.lora_A.weight": (2, 4)}

names = st.text(st.sampled_from("abzAZ019._-é"), min_size=1, max_size=12).filter(
    lambda name: name != "document"
)
shapes = st.dictionaries(names, st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)
documents = st.lists(st.integers(0, 2**40), unique=True, min_size=1, max_size=9).map(sorted)


def _gradients(
    rows: int, shapes: dict[str, tuple[int, int]], seed: int = 0
) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=(rows, *shape)).astype(np.float32) for name, shape in shapes.items()}


def _write(
    path: Path,
    physical: Sequence[int],
    gradients: dict[str, NDArray[np.float32]],
    batches: Sequence[Sequence[int]],
) -> None:
    """Write the documents in batches, given as positions."""
    shapes = {name: value.shape[1:] for name, value in gradients.items()}
    with GradientWriter(path, np.array(physical, dtype=np.int64), shapes) as writer:
        for batch in batches:
            writer.write(
                [physical[place] for place in batch],
                {name: torch.from_numpy(value[list(batch)]) for name, value in gradients.items()},
            )


@settings(deadline=None, max_examples=50)
@given(shapes=shapes, physical=documents, data=st.data())
def test_batches_in_any_order_are_read_back_to_the_bit_by_another_reader(
    shapes: dict[str, tuple[int, int]], physical: list[int], data: st.DataObject
) -> None:
    gradients = _gradients(len(physical), shapes)
    order = data.draw(st.permutations(range(len(physical))))
    cut = data.draw(st.integers(0, len(order)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0000.safetensors"
        _write(path, physical, gradients, [part for part in (order[:cut], order[cut:]) if part])
        stored = load_file(path)
        assert stored["document"].dtype == np.int64
        assert stored.keys() == {"document", *shapes}
        assert stored["document"].tolist() == physical
        for name, value in gradients.items():
            assert stored[name].dtype == np.float32
            np.testing.assert_array_equal(stored[name], value)


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), data=st.data())
def test_positions_count_over_all_shards(sizes: list[int], data: st.DataObject) -> None:
    whole = _gradients(sum(sizes), SHAPES)
    positions = data.draw(st.lists(st.integers(0, sum(sizes) - 1), unique=True).map(sorted))
    with tempfile.TemporaryDirectory() as folder:
        paths: list[Path] = []
        start = 0
        for index, size in enumerate(sizes):
            paths.append(Path(folder) / f"{index:04d}.safetensors")
            part = {name: value[start : start + size] for name, value in whole.items()}
            _write(paths[-1], range(10 * start, 10 * start + size), part, [range(size)])
            start += size
        shards = GradientShards(paths, CPU)
        assert shards.names == sorted(SHAPES)
        wanted = np.array(positions, dtype=np.int64)
        for name, value in whole.items():
            np.testing.assert_array_equal(shards.rows(name, wanted).numpy(), value[positions])
            np.testing.assert_array_equal(shards.shard(len(sizes) - 1, name).numpy(), value[-sizes[-1] :])


def test_no_position_gives_no_row_in_the_parameters_shape(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    _write(path, [1, 2], _gradients(2, SHAPES), [[0, 1]])
    found = GradientShards([path], CPU).rows("a.lora_A.weight", np.zeros(0, dtype=np.int64))
    assert (found.shape, found.dtype) == ((0, 2, 4), torch.float32)


def test_a_row_never_written_is_zero(tmp_path: Path) -> None:
    path, gradients = tmp_path / "shard", _gradients(3, SHAPES)
    _write(path, [4, 7, 9], gradients, [[2], [0]])
    stored = load_file(path)
    assert stored["document"].tolist() == [4, 7, 9]
    for name, value in gradients.items():
        assert not stored[name][1].any()
        np.testing.assert_array_equal(stored[name][[0, 2]], value[[0, 2]])


@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 8), ("float16", 11)])
def test_sixteen_bits_are_read_as_float32_within_their_precision(
    tmp_path: Path, dtype: GradientDtype, bits: int
) -> None:
    gradients = _gradients(3, SHAPES)
    gradients["a.lora_A.weight"] *= np.array([1e-12, 1.0, 1e9], dtype=np.float32)[:, None, None]
    with GradientWriter(tmp_path / "shard", np.array([4, 7, 9]), SHAPES, dtype) as writer:
        for rows in ([2], [0, 1]):
            part = {name: torch.from_numpy(value[rows]) for name, value in gradients.items()}
            writer.write([(4, 7, 9)[row] for row in rows], part)
    stored = load_torch(tmp_path / "shard")
    scales = {f"scale/{name}" for name in SHAPES} if dtype == "float16" else set[str]()
    assert stored.keys() == {"document", *SHAPES, *scales}
    assert {str(stored[name].dtype) for name in SHAPES} == {f"torch.{dtype}"}
    shards = GradientShards([tmp_path / "shard"], CPU)
    assert shards.names == sorted(SHAPES)
    for name, value in gradients.items():
        whole, some = shards.shard(0, name), shards.rows(name, np.array([0, 2]))
        assert whole.dtype == some.dtype == torch.float32
        assert torch.equal(whole[[0, 2]], some)
        error = np.abs(whole.numpy() - value)
        assert (error <= np.abs(value) * 2.0**-bits).all()
        assert error.any()


def test_a_parameter_named_as_a_scale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no parameter may be named"):
        GradientWriter(tmp_path / "shard", np.array([0]), {"scale/p": (1, 1)}, "float16")


def test_lower_precision_is_widened_without_loss(tmp_path: Path) -> None:
    value = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    with GradientWriter(tmp_path / "shard", np.array([0, 1]), {"p": (3, 2)}) as writer:
        writer.write([0, 1], {"p": value})
    assert torch.equal(torch.from_numpy(load_file(tmp_path / "shard")["p"]).bfloat16(), value)


@pytest.mark.parametrize("physical", [[2, 1], [1, 1], [0, 5, 3]])
def test_documents_that_do_not_rise_are_refused(tmp_path: Path, physical: list[int]) -> None:
    with pytest.raises(ValueError, match="must rise"):
        GradientWriter(tmp_path / "shard", np.array(physical), SHAPES)
    assert not (tmp_path / "shard").exists()


@pytest.mark.parametrize("document", [0, 2, 9])
def test_a_document_of_another_shard_is_refused_and_overwrites_nothing(tmp_path: Path, document: int) -> None:
    gradients = _gradients(2, SHAPES)
    with GradientWriter(tmp_path / "shard", np.array([1, 3]), SHAPES) as writer:
        writer.write([1, 3], {name: torch.from_numpy(value) for name, value in gradients.items()})
        with pytest.raises(KeyError, match="documents of the shard"):
            writer.write([document], {name: torch.ones(1, *shape) for name, shape in SHAPES.items()})
    np.testing.assert_array_equal(
        load_file(tmp_path / "shard")["b.lora_B.weight"], gradients["b.lora_B.weight"]
    )


@pytest.mark.parametrize("given_names", [["a.lora_A.weight"], [*SHAPES, "c"], []])
def test_parameters_must_be_those_of_the_shard(tmp_path: Path, given_names: list[str]) -> None:
    with (
        GradientWriter(tmp_path / "shard", np.array([0]), SHAPES) as writer,
        pytest.raises(KeyError, match="not the shard's parameters"),
    ):
        writer.write([0], {name: torch.ones(1, *SHAPES.get(name, (1, 1))) for name in given_names})


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        GradientWriter(tmp_path / "shard", np.array([0]), SHAPES)
    assert (tmp_path / "shard").read_bytes() == b"mine"


def test_what_was_written_before_a_failure_can_be_read(tmp_path: Path) -> None:
    def broken() -> None:
        with GradientWriter(tmp_path / "shard", np.array([0, 1]), {"p": (1, 1)}) as writer:
            writer.write([1], {"p": torch.full((1, 1, 1), 5.0)})
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        broken()
    assert load_file(tmp_path / "shard")["p"].ravel().tolist() == [0.0, 5.0]


def test_a_full_disk_is_an_error_and_no_end_of_the_process(tmp_path: Path) -> None:
    """In a file as large as a process may make it: the operating system refuses the same write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signals = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with GradientWriter(tmp_path / "shard", np.array([0, 1]), {"p": (64, 64)}) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (16_384 + 4096, before[1]))
            with pytest.raises(OSError, match="File too large"):
                writer.write([0, 1], {"p": torch.ones(2, 64, 64)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, signals)


def test_tensors_begin_at_multiples_of_eight_bytes(tmp_path: Path) -> None:
    """As safetensors asks; memory-mapped readers rely on it."""
    _write(tmp_path / "shard", [0], _gradients(1, SHAPES), [[0]])
    raw = (tmp_path / "shard").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    assert length % 8 == 0
    header = json.loads(raw[8 : 8 + length])
    ends = [header[name]["data_offsets"][1] for name in header if name != "__metadata__"]
    assert 8 + length + max(ends) == len(raw)
