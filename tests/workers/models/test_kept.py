"""A worker keeps the bases it used last, whatever adapter is on them, and lets go of the oldest for room."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from atomscope.errors import InvalidInput
from atomscope_workers.models import kept
from atomscope_workers.models.kept import KeptModels, Parts, held_bytes
from atomscope_workers.models.load import CheckedParts, adapter_disabled, checked_parts
from atomscope_workers.models.lora import LoraModel
from tests.fixtures.models import TinyAdapterFactory
from tests.workers.pipeline.tiny import tiny_lora

CPU = torch.device("cpu")


@pytest.fixture
def models() -> KeptModels:
    return KeptModels()


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    def told(device: torch.device) -> int:
        return free

    monkeypatch.setattr(kept, "free_bytes", told)


class Tiny:
    """Parts of one tiny model, already put together."""

    def load_base(self) -> PreTrainedModel:
        self.model = tiny_lora()
        return self.model.base

    def attach(self, base: PreTrainedModel) -> LoraModel:
        assert base is self.model.base
        return self.model


def get(models: KeptModels, name: str, size: int) -> LoraModel:
    return models.get((name,), "adapter", Tiny, size=size, device=CPU)


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
    class Failing(Tiny):
        def attach(self, base: PreTrainedModel) -> LoraModel:
            raise RuntimeError("no")

    for adapter in ("one", "other"):
        with pytest.raises(RuntimeError):
            models.get(("a",), adapter, Failing, size=1, device=CPU)
        assert len(models) == 0


def logits(lora: LoraModel) -> torch.Tensor:
    with torch.no_grad():
        return lora.model(input_ids=torch.arange(12).reshape(2, 6)).logits


@dataclass
class Loader:
    """Adapters of one base through a worker's models."""

    base: Path
    models: KeptModels
    dtype: torch.dtype
    loaded: int = 0

    def parts(self, adapter: Path) -> CheckedParts:
        return checked_parts(self.base, adapter, dtype=self.dtype, device=CPU)

    def get(self, adapter: Path) -> LoraModel:
        return self.models.get(("base",), str(adapter), lambda: self._counted(adapter), size=1, device=CPU)

    def _counted(self, adapter: Path) -> Parts:
        found, loader = self.parts(adapter), self

        class Counted:
            def load_base(self) -> PreTrainedModel:
                loader.loaded += 1
                return found.load_base()

            def attach(self, base: PreTrainedModel) -> LoraModel:
                return found.attach(base)

        return Counted()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_of_one_base_take_turns_on_it_with_the_bits_of_a_model_of_their_own(
    models: KeptModels, tiny_llama: Path, tiny_adapter: TinyAdapterFactory, dtype: torch.dtype
) -> None:
    loader = Loader(tiny_llama, models, dtype)
    adapters = [
        tiny_adapter(),
        tiny_adapter(("k_proj", "down_proj"), r=2, lora_alpha=3, seed=1),
        tiny_adapter(
            ("q_proj", "lm_head"), use_rslora=True, seed=2, rank_pattern={"layers.0.self_attn.q_proj": 3}
        ),
    ]
    for adapter in (*adapters, *adapters):
        found, own = loader.get(adapter), loader.parts(adapter)
        alone = own.attach(own.load_base())
        assert torch.equal(logits(found), logits(alone))
        assert [item.name for item in found.parameters] == [item.name for item in alone.parameters]
        assert not any(item.requires_grad for item in found.model.parameters())
        assert torch.equal(*(_without(model) for model in (found, alone)))
    assert loader.loaded == 1


def _without(lora: LoraModel) -> torch.Tensor:
    with adapter_disabled(lora):
        return logits(lora)


def test_the_same_adapter_is_not_put_on_again(
    models: KeptModels, tiny_llama: Path, tiny_adapter: TinyAdapterFactory
) -> None:
    loader, adapter = Loader(tiny_llama, models, torch.float32), tiny_adapter()
    assert loader.get(adapter) is loader.get(adapter)


def test_an_adapter_that_does_not_fit_leaves_the_one_that_is_there(
    models: KeptModels, tiny_llama: Path, tiny_adapter: TinyAdapterFactory, tmp_path: Path
) -> None:
    loader, adapter = Loader(tiny_llama, models, torch.float32), tiny_adapter()
    there = loader.get(adapter)
    with pytest.raises(InvalidInput):
        loader.get(tmp_path)
    assert loader.get(adapter) is there
    assert loader.loaded == 1


def test_an_offloaded_base_is_loaded_anew_for_another_adapter_once_the_old_one_is_gone(
    models: KeptModels,
) -> None:
    gone: list[weakref.ref[PreTrainedModel]] = []

    class Offloaded(Tiny):
        def load_base(self) -> PreTrainedModel:
            assert all(base() is None for base in gone), "two bases at once"
            return super().load_base()

        def attach(self, base: PreTrainedModel) -> LoraModel:
            gone.append(weakref.ref(base))
            return replace(super().attach(base), offloaded=True)

    for adapter in ("one", "other"):
        models.get(("a",), adapter, Offloaded, size=1, device=CPU)
    assert (len(models), len(gone)) == (1, 2)


def test_a_kept_base_is_told_of_and_the_device_given_back_what_its_passes_left(
    models: KeptModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[torch.device] = []
    monkeypatch.setattr(kept, "_give_back", given.append)
    assert not models.holds(("a",), CPU)
    models.get(("a",), "one", Tiny, size=1, device=CPU)
    assert models.holds(("a",), CPU)
    assert given == [CPU]


def test_weights_that_lie_elsewhere_are_not_counted() -> None:
    lora = tiny_lora()
    whole = held_bytes(lora)
    layer = lora.base.model.layers[0]
    size = sum(item.nbytes for item in layer.parameters())
    layer.to("meta")
    assert held_bytes(lora) == whole - size
