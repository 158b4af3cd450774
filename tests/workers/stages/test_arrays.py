"""The files between stages: what is read is what was written, to the bit."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors.numpy import load_file

from atomscope_workers.pipeline.curvature import Eigenbasis, ModuleCurvature, Rotation
from atomscope_workers.pipeline.factors import FactorSums
from atomscope_workers.pipeline.products import OuterSum
from atomscope_workers.pipeline.projection import ProjectedRows
from atomscope_workers.stages.arrays import (
    CurvatureFile,
    Losses,
    load_curvature,
    load_factors,
    load_losses,
    load_projected,
    save_curvature,
    save_factors,
    save_losses,
    save_projected,
)
from atomscope_workers.stages.tensor_ranges import TensorRanges

BINARY32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
names = st.text(st.sampled_from("ab019._/é"), min_size=1, max_size=10)


def _symmetric(size: int, seed: int) -> OuterSum:
    root = torch.randn(size, size + 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return OuterSum.of(root @ root.T)


def _factors(sizes: dict[str, tuple[int, int]]) -> FactorSums:
    """Every module with an input of its own, but the last, which shares the first one's."""
    modules = sorted(sizes)
    groups = {name: name for name in modules}
    groups[modules[-1]] = modules[0]
    owners = sorted(set(groups.values()))
    return FactorSums(
        groups=groups,
        inputs={name: _symmetric(sizes[name][0], seed) for seed, name in enumerate(owners)},
        outputs={name: _symmetric(sizes[name][1], 9 + seed) for seed, name in enumerate(modules)},
        input_tokens={name: 3 + seed for seed, name in enumerate(owners)},
        output_tokens={name: 5 + seed for seed, name in enumerate(modules)},
    )


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(names, st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4))
def test_factor_sums_come_back_rounded_to_float32_once(sizes: dict[str, tuple[int, int]]) -> None:
    factors = _factors(sizes)
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "first", Path(folder) / "second"
        save_factors(factors, first)
        found = load_factors(first)
        save_factors(found, second)
        assert second.read_bytes() == first.read_bytes()
    assert (found.groups, found.input_tokens, found.output_tokens) == (
        factors.groups,
        factors.input_tokens,
        factors.output_tokens,
    )
    for stored, given_sums in ((found.inputs, factors.inputs), (found.outputs, factors.outputs)):
        assert stored.keys() == given_sums.keys()
        for name, value in stored.items():
            matrix, given = value.matrix(), given_sums[name].matrix()
            assert matrix.dtype == torch.float32
            assert torch.equal(matrix, matrix.T)
            assert torch.equal(matrix, given.triu().float() + given.triu(1).T.float())


def test_factor_sums_take_half_of_a_square_in_float32(tmp_path: Path) -> None:
    save_factors(_factors({"m": (40, 30)}), tmp_path / "factors")
    stored = load_file(tmp_path / "factors")
    assert {name: value.shape for name, value in stored.items()} == {
        "inputs/m": (40 * 41 // 2,),
        "outputs/m": (30 * 31 // 2,),
    }
    assert {value.dtype for value in stored.values()} == {np.dtype(np.float32)}


def _module(name: str, group: str, inputs: Eigenbasis, kept: int, seed: int) -> ModuleCurvature:
    generator = torch.Generator().manual_seed(seed)
    outputs = Eigenbasis(
        torch.rand(3, generator=generator, dtype=torch.float64), torch.randn(3, 3, generator=generator)
    )
    lambdas = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    flat = torch.randperm(12, generator=generator)[:kept]
    return ModuleCurvature(
        rotation=Rotation(name, group, inputs, outputs),
        lambdas=lambdas,
        damping=0.1 / 3 * seed,
        chosen=torch.stack([flat // 4, flat % 4], dim=1),
        scale=torch.rand(kept, generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize("kept", [0, 1, 12])
def test_curvature_comes_back_by_name_to_the_bit(tmp_path: Path, kept: int) -> None:
    """Also of a module that had no gradient, of which no component is kept."""
    generator = torch.Generator().manual_seed(1)
    shared = Eigenbasis(
        torch.rand(4, generator=generator, dtype=torch.float64), torch.randn(4, 4, generator=generator)
    )
    own = Eigenbasis(shared.values + 1, shared.vectors.T)  # not contiguous
    given_modules = [
        _module("z/last", "a.first", shared, 5, 3),
        _module("a.first", "a.first", shared, kept, 1),
        _module("b", "b", own, 2, 2),
    ]
    save_curvature(given_modules, tmp_path / "curvature")
    found = load_curvature(tmp_path / "curvature")
    assert [module.name for module in found] == ["a.first", "b", "z/last"]
    assert found[0].rotation.inputs is found[2].rotation.inputs
    by_name = {module.name: module for module in given_modules}
    stored = bytearray((tmp_path / "curvature").read_bytes())
    one_by_one = CurvatureFile(TensorRanges(lambda start, length: stored[start : start + length]))
    assert one_by_one.shapes == dict.fromkeys(by_name, (3, 4))
    for module in (*found, *map(one_by_one.module, by_name)):
        expected = by_name[module.name]
        assert module.damping == expected.damping
        assert module.rotation.group == expected.rotation.group
        for stored, given_tensor in (
            (module.rotation.inputs.values, expected.rotation.inputs.values),
            (module.rotation.inputs.vectors, expected.rotation.inputs.vectors),
            (module.rotation.outputs.values, expected.rotation.outputs.values),
            (module.rotation.outputs.vectors, expected.rotation.outputs.vectors),
            (module.lambdas, expected.lambdas),
            (module.chosen, expected.chosen),
            (module.scale, expected.scale),
        ):
            assert stored.dtype == given_tensor.dtype
            assert torch.equal(stored, given_tensor)


@settings(deadline=None, max_examples=50)
@given(st.lists(hnp.arrays(np.float64, st.integers(1, 5)), min_size=1, max_size=3))
def test_losses_come_back_in_shard_order_to_the_bit_with_what_was_not_measured(
    parts: list[np.ndarray],
) -> None:
    shards = [
        Losses(np.arange(len(part)) + 100 * index, part, np.full(len(part), np.nan), -part, part / 2)
        for index, part in enumerate(parts)
    ]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(index) for index in range(len(shards))]
        for shard, path in zip(shards, paths, strict=True):
            save_losses(shard, path)
        found = load_losses(paths)
    assert found.document.tolist() == [row for shard in shards for row in shard.document.tolist()]
    assert found.loss.tobytes() == np.concatenate(parts).tobytes()
    assert found.gradient_norm.tobytes() == (-np.concatenate(parts)).tobytes()
    assert np.isnan(found.base_loss).all()
    assert found.parent_base_loss is not None
    assert found.parent_base_loss.tobytes() == (np.concatenate(parts) / 2).tobytes()


def _energy(rows: int) -> NDArray[np.float64]:
    return np.arange(rows, dtype=np.float64) / 3


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(3)), elements=BINARY32),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["C", "F"]),
)
def test_whitened_rows_come_back_in_shard_order_to_the_bit_whatever_their_memory_order(
    parts: list[np.ndarray], order: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths: list[Path] = []
        for index, part in enumerate(parts):
            paths.append(Path(folder) / str(index))
            energy = _energy(len(part))
            rows = np.asfortranarray(part) if order == "F" else part
            save_projected(
                np.arange(len(part)) + 100 * index, ProjectedRows(rows, energy, energy * 3), paths[-1]
            )
        documents, found = load_projected(paths)
    energy = np.concatenate([_energy(len(part)) for part in parts])
    assert documents.tolist() == [
        100 * i + place for i, part in enumerate(parts) for place in range(len(part))
    ]
    assert found.rows.dtype == np.float32
    assert found.rows.tobytes() == np.concatenate(parts).tobytes()
    assert found.energy_kept.tobytes() == energy.tobytes()
    assert found.energy_total.tobytes() == (energy * 3).tobytes()


def test_rows_without_a_column_are_kept(tmp_path: Path) -> None:
    """Of an audit in which no module had a gradient."""
    nothing = ProjectedRows(np.zeros((3, 0), dtype=np.float32), np.zeros(3), np.zeros(3))
    save_projected(np.arange(3), nothing, tmp_path / "rows")
    documents, found = load_projected([tmp_path / "rows"])
    assert (documents.tolist(), found.rows.shape) == ([0, 1, 2], (3, 0))
