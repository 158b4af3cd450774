"""Gradients are checked and written beside the next pass: all of them, few at once, no error lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from atomscope.errors import InvalidInput
from atomscope_workers.models.lora import LoraModel
from atomscope_workers.pipeline.batches import Batch, collate
from atomscope_workers.pipeline.factors import FactorSums
from atomscope_workers.pipeline.gradients import gradient_norms, gradient_pass
from atomscope_workers.stages.extract import write_gradients
from atomscope_workers.stages.gradient_file import GradientWriter
from tests.workers.pipeline.tiny import random_documents, tiny_lora

CPU = torch.device("cpu")
Values = NDArray[np.float64]


@pytest.fixture(scope="module")
def lora() -> LoraModel:
    return tiny_lora()


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    """Twelve documents, two a batch, the last first."""
    documents = random_documents(12)
    return [collate(documents[start : start + 2], CPU) for start in range(10, -2, -2)]


def shard(path: Path, lora: LoraModel) -> GradientWriter:
    shapes = {parameter.name: parameter.shape for parameter in lora.parameters}
    return GradientWriter(path, np.arange(12), shapes)


def test_the_file_and_what_is_kept_are_those_of_the_passes(
    lora: LoraModel, batches: list[Batch], tmp_path: Path
) -> None:
    losses, norms, factors, direct = np.zeros(12), np.zeros(12), FactorSums(), FactorSums()

    def keep(documents: list[int], summed: Values, lengths: Values) -> None:
        losses[documents], norms[documents] = summed, lengths

    with shard(tmp_path / "shard", lora) as writer:
        write_gradients(lora, batches, factors, writer, keep)
    stored = load_file(tmp_path / "shard")
    with gradient_pass(lora, direct) as differentiate:
        for batch in batches:
            found, rows = differentiate(batch), list(batch.documents)
            for name, value in found.gradients.items():
                np.testing.assert_array_equal(stored[name][rows], value.numpy())
            np.testing.assert_array_equal(losses[rows], found.losses.numpy())
            np.testing.assert_array_equal(norms[rows], gradient_norms(found.gradients).numpy())
    assert all(
        torch.equal(factors.inputs[name].matrix(), value.matrix()) for name, value in direct.inputs.items()
    )


def test_what_keep_raises_ends_the_work_and_nothing_of_its_batch_is_written(
    lora: LoraModel, batches: list[Batch], tmp_path: Path
) -> None:
    kept: list[int] = []

    def keep(documents: list[int], losses: Values, norms: Values) -> None:
        if 6 in documents:
            raise InvalidInput("not_finite", "broken")
        kept.extend(documents)

    with (
        shard(tmp_path / "shard", lora) as writer,
        pytest.raises(InvalidInput, match="broken"),
    ):
        write_gradients(lora, batches, FactorSums(), writer, keep)
    assert kept == [10, 11, 8, 9]
    stored = load_file(tmp_path / "shard")[lora.parameters[0].name]
    assert [row for row in range(12) if stored[row].any()] == [8, 9, 10, 11]


def test_passes_do_not_run_ahead_of_the_file_by_more_than_one_batch(
    lora: LoraModel, batches: list[Batch], tmp_path: Path
) -> None:
    """So that a slow disk costs time and not memory."""
    begun, second, ahead = list[int](), threading.Event(), list[int]()

    def given() -> Iterator[Batch]:
        for place, batch in enumerate(batches):
            begun.append(place)
            if place == 1:
                second.set()
            yield batch

    def keep(documents: list[int], losses: Values, norms: Values) -> None:
        if 10 in documents:  # the first: wait as a slow disk would, for longer than a pass takes
            second.wait(60)
            time.sleep(0.3)
            ahead.append(len(begun))

    with shard(tmp_path / "shard", lora) as writer:
        write_gradients(lora, given(), FactorSums(), writer, keep)
    assert ahead == [2]
    assert len(begun) == len(batches)
