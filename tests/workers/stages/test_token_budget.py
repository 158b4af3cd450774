"""`token_budget: auto` is tried once and remembered by content; a cache that is damaged costs a probe."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atomscope.errors import InvalidInput
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.models.causal_attention import KEPT
from atomscope_workers.models.lora import LoraModel
from atomscope_workers.pipeline.budget import probe_documents
from atomscope_workers.stages import token_budget
from atomscope_workers.stages.token_budget import MOST, PassSize, found_size
from atomscope_workers.worker_cache import CACHE_VARIABLE
from tests.workers.pipeline.tiny import tiny_lora

BASE = "b" * 64


@pytest.fixture(scope="module")
def lora() -> LoraModel:
    return tiny_lora()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "token-budgets"


class Device:
    """An allocator that fails above so many tokens, of recomputed layers above others; counts its calls."""

    def __init__(self, limit: int, recomputed: int | None = None) -> None:
        self.limit, self.recomputed, self.asked = limit, recomputed or limit, 0

    def __call__(self, tokens: int, recompute: bool) -> int:
        self.asked += 1
        if tokens > (self.recomputed if recompute else self.limit):
            raise torch.OutOfMemoryError("forced")
        return 0


def found(lora: LoraModel, device: Device | None, base: str = BASE, longest: int = 30, shard: int = 8) -> int:
    found = found_size(lora, "auto", base, [9, 20, longest], shard, lambda: None, device)
    assert not found.recompute
    return found.token_budget


def test_it_is_tried_once_and_remembered_by_what_decides_it(lora: LoraModel, cache: Path) -> None:
    device = Device(1000)
    first = found(lora, device)
    assert first == 768
    asked = device.asked
    assert found(lora, device, longest=32) == first  # of one range of lengths
    assert device.asked == asked
    assert len(list(cache.iterdir())) == 1
    others = [
        found(lora, Device(600), base="c" * 64),
        found(lora, Device(600), longest=33),
        found(lora, Device(600), shard=9),
        found(tiny_lora(layers=1), Device(600)),
        found(tiny_lora(dtype=torch.bfloat16), Device(600)),
    ]
    assert others == [512] * 5
    assert found(lora, Device(10)) == first
    assert len(list(cache.iterdir())) == 6


def test_workers_with_a_little_more_or_less_memory_come_to_the_same_batches(
    lora: LoraModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are part of what a stored shard is known by, and each worker has a cache of its own."""
    for worker, limit in enumerate((900, 950, 1000, 1023)):
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / str(worker)))
        assert found(lora, Device(limit)) == 768


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b'{"facts": 3, "budget": 9, "recompute": false}', b"\xff\xfe"],
    ids=["empty", "cut", "a list", "other facts", "no text"],
)
def test_a_damaged_cache_is_told_of_and_made_anew(
    lora: LoraModel, cache: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    found(lora, Device(1000))
    (file,) = cache.iterdir()
    file.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert found(lora, Device(600)) <= 600
    assert "found anew" in caplog.text
    assert found(lora, Device(10**9)) <= 600  # and kept again


def test_what_is_of_something_else_or_out_of_range_is_not_taken(
    lora: LoraModel, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found(lora, Device(1000))
    (mine,) = cache.iterdir()
    found(lora, Device(600), base="c" * 64)
    other = next(file for file in cache.iterdir() if file != mine)
    for content in (other.read_bytes(), mine.read_bytes().replace(b'"budget": ', b'"budget": -')):
        mine.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            assert found(lora, Device(600)) == 512
        assert "of something else" in caplog.text
        caplog.clear()


def test_a_cache_that_cannot_be_written_costs_a_probe_alone(
    lora: LoraModel, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert found(lora, Device(600)) <= 600
    assert "could not be kept" in caplog.text


def test_where_the_least_does_not_fit_the_numbers_are_told(lora: LoraModel, cache: Path) -> None:
    with pytest.raises(InvalidInput, match=r"256 tokens does not fit, .* GiB are free on cpu") as caught:
        found(lora, Device(10))
    assert caught.value.code == "not_enough_memory"
    assert not cache.exists()


def test_where_no_batch_fits_layers_are_recomputed_and_that_is_remembered(
    lora: LoraModel, cache: Path
) -> None:
    device = Device(10, recomputed=700)
    size = found_size(lora, "auto", BASE, [9, 30], 8, lambda: None, device)
    assert size.recompute
    assert size.token_budget == 512
    asked = device.asked
    assert found_size(lora, "auto", BASE, [9, 30], 8, lambda: None, device) == size
    assert device.asked == asked


def test_a_base_larger_than_its_device_is_tried_recomputed_alone(lora: LoraModel) -> None:
    split = replace(lora, offloaded=True)
    size = found_size(split, "auto", BASE, [9, 30], 8, lambda: None, Device(10**9, recomputed=700))
    assert size.recompute
    assert size.token_budget <= 700


def test_a_budget_that_is_given_is_taken_as_it_is_where_nothing_would_say_no(
    lora: LoraModel, cache: Path
) -> None:
    device = Device(10)
    assert found_size(lora, 512, BASE, [9], 8, lambda: None, device) == PassSize(512, False)
    split = replace(lora, offloaded=True)
    assert found_size(split, 512, BASE, [9], 8, lambda: None, device) == PassSize(512, True)
    assert device.asked == 0
    assert not cache.exists()


@pytest.mark.parametrize(
    ("lengths", "tried"),
    [
        ([9, 20, 1000], {8, KEPT, 1024}),
        ([9, 20, KEPT], {8, KEPT}),
        ([600, 1000], {512, 1024}),
        ([9], {8, 16}),
    ],
)
def test_documents_whose_attention_weights_are_kept_are_tried_where_longer_ones_are_among_them(
    lora: LoraModel, monkeypatch: pytest.MonkeyPatch, lengths: list[int], tried: set[int]
) -> None:
    asked: set[int] = set()

    def recorded(tokens: int, length: int, vocabulary: int, most: int) -> list[TokenizedDocument]:
        asked.add(length)
        return probe_documents(tokens, min(length, 16), vocabulary, most)

    monkeypatch.setattr(token_budget, "probe_documents", recorded)
    monkeypatch.setitem(MOST, "cpu", 256)
    found_size(lora, "auto", BASE, lengths, 8, lambda: None)
    assert asked == tried


def _less_than_nothing(device: torch.device) -> int:
    return -2


def test_on_this_device_budgets_are_measured_and_a_cancel_is_heard(
    lora: LoraModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MOST, "cpu", 512)
    assert found(lora, None) == 512
    monkeypatch.setattr(token_budget, "free_bytes", _less_than_nothing)
    with pytest.raises(InvalidInput, match="does not fit"):
        found(lora, None, longest=64)

    def stopped() -> None:
        raise InterruptedError("canceled")

    with pytest.raises(InterruptedError):
        found_size(lora, "auto", "d" * 64, [9], 8, stopped)
