"""A worker keeps the models it used last, and lets go of the oldest where a new one needs the room."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from atomscope_workers.models import kept
from atomscope_workers.models.kept import KeptModels, held_bytes
from atomscope_workers.models.lora import LoraModel
from tests.workers.pipeline.tiny import tiny_lora

CPU = torch.device("cpu")


@pytest.fixture
def models() -> KeptModels:
    return KeptModels()


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    def told(device: torch.device) -> int:
        return free

    monkeypatch.setattr(kept, "free_bytes", told)


def get(models: KeptModels, name: str, size: int) -> LoraModel:
    return models.get((name,), tiny_lora, size=size, device=CPU)


def test_a_model_is_loaded_once_and_stays(models: KeptModels, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 10**9)
    first = get(models, "a", 1)
    assert get(models, "b", 1) is not first
    assert get(models, "a", 1) is first
    assert len(models) == 2


def test_the_one_used_longest_ago_goes_first_and_its_memory_with_it(
    models: KeptModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = held_bytes(tiny_lora())
    with_free(monkeypatch, 10**9)
    for name in ("a", "b", "a"):
        get(models, name, size)
    gone = weakref.ref(get(models, "b", size).model)
    get(models, "a", size)
    # Room for one other beside a new one: 0.2 of what is left without it.
    with_free(monkeypatch, 5 * size)
    get(models, "c", size)
    gc.collect()
    assert gone() is None
    assert [(name,) in models for name in ("a", "b", "c")] == [True, False, True]


def test_no_other_stays_beside_a_model_that_takes_the_device(
    models: KeptModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = held_bytes(tiny_lora())
    with_free(monkeypatch, 10**9)
    get(models, "a", size)
    with_free(monkeypatch, 2 * size)
    get(models, "b", 2 * size)
    assert [(name,) in models for name in ("a", "b")] == [False, True]


def test_what_fails_to_load_is_not_kept(models: KeptModels) -> None:
    def fails() -> LoraModel:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        models.get(("a",), fails, size=1, device=CPU)
    assert len(models) == 0


def test_weights_that_lie_elsewhere_are_not_counted() -> None:
    lora = tiny_lora()
    whole = held_bytes(lora)
    layer = lora.base.model.layers[0]
    size = sum(item.nbytes for item in layer.parameters())
    layer.to("meta")
    assert held_bytes(lora) == whole - size
