"""A base larger than its device: what stays there, what lies elsewhere, and the same bits of every base.

The limit is forced by `ATOMSCOPE_DEVICE_BYTES`; with a CPU for the device, what does not fit lies on disk.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from atomscope.errors import InvalidInput
from atomscope_workers.models.base import build_meta_base, check_base, load_base
from atomscope_workers.models.device_memory import LIMIT_VARIABLE
from atomscope_workers.models.load import adapter_disabled, load_lora_model
from atomscope_workers.models.lora import LoraModel
from atomscope_workers.models.offload import FITS, HELD, decoder_layers, least_bytes, placement, weight_bytes
from atomscope_workers.pipeline.batches import collate
from atomscope_workers.pipeline.factors import FactorSums
from atomscope_workers.pipeline.gradients import document_losses, gradient_pass
from tests.fixtures.architectures import ARCHITECTURES, Architecture
from tests.fixtures.models import TinyAdapterFactory
from tests.workers.models.reference import CPU, documents

CUDA = torch.device("cuda", 0)


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


@pytest.fixture(scope="module")
def base(architecture: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return architecture.save(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(architecture: Architecture, base: Path, tiny_adapter: TinyAdapterFactory) -> Path:
    return tiny_adapter(
        (*architecture.targets, architecture.head),
        base=base,
        fan_in_fan_out=architecture is ARCHITECTURES["gpt2"],
        save_embedding_layers=True,
    )


def bits(lora: LoraModel, *, recompute: bool = False) -> dict[str, torch.Tensor]:
    """All that a shard's passes give, by name."""
    items, sums = documents(), FactorSums()
    found: dict[str, torch.Tensor] = {}
    with gradient_pass(lora, sums, recompute=recompute) as run:
        for half in (items[:4], items[4:]):
            batch = collate(half, CPU)
            result = run(batch)
            found |= {f"{half[0].document}/{name}": value for name, value in result.gradients.items()}
            found[f"{half[0].document}/losses"] = result.losses
            found[f"{half[0].document}/losses alone"] = document_losses(lora, batch)
            with adapter_disabled(lora):
                found[f"{half[0].document}/losses of the base"] = document_losses(lora, batch)
    found |= {f"inputs of {name}": value.matrix() for name, value in sums.inputs.items()}
    return found | {f"outputs of {name}": value.matrix() for name, value in sums.outputs.items()}


def check_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.count_nonzero() > 0, name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_layers_and_layers_on_disk_give_the_same_bits(
    base: Path,
    adapter: Path,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = load_lora_model(base, adapter, dtype=dtype, device=CPU)
    assert not whole.offloaded
    expected = bits(whole)
    check_equal(bits(whole, recompute=True), expected)
    check_equal(bits(whole), expected)  # nothing of it is left behind
    model = build_meta_base(check_base(base))
    monkeypatch.setenv(LIMIT_VARIABLE, str(least_bytes(model, dtype)))
    with caplog.at_level(logging.WARNING):
        split = load_lora_model(base, adapter, dtype=dtype, device=CPU)
    assert "its other layers are moved there whenever they run" in caplog.text
    assert split.offloaded
    of_layers = {
        name: weight.device.type
        for path, layer in decoder_layers(split.base).items()
        for name, weight in layer.named_parameters(path)
    }
    assert {place for name, place in of_layers.items() if "lora_" not in name} == {"meta"}
    assert all(item.linear.weight.device.type == "cpu" for item in split.parameters)
    check_equal(bits(split), expected)
    check_equal(bits(split), expected)


def test_a_device_that_cannot_hold_one_layer_is_refused_with_the_numbers(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_meta_base(check_base(base))
    monkeypatch.setenv(LIMIT_VARIABLE, str(least_bytes(model, torch.float32) - 1))
    with pytest.raises(InvalidInput, match=r"the base takes .* MiB of it on cpu .* are free there") as caught:
        load_base(check_base(base), dtype=torch.float32, device=CPU)
    assert caught.value.code == "not_enough_memory"


def placed(model: Any, free: int, host: int, device: torch.device = CUDA) -> dict[str, str | int] | None:
    found = placement(model, torch.float32, device, free=free, free_host=host)
    return None if found is None else found.places


def test_layers_stay_on_the_device_while_they_fit_then_on_the_host_then_on_disk(tiny_llama: Path) -> None:
    checked = check_base(tiny_llama)
    checked.config.num_hidden_layers = 6
    model = type(build_meta_base(check_base(tiny_llama)))(checked.config).to("meta")
    layers = decoder_layers(model)
    assert list(layers) == [f"model.layers.{number}" for number in range(6)]
    total = weight_bytes(model, torch.float32)
    size = weight_bytes(layers["model.layers.0"], torch.float32)
    outside = total - 6 * size
    assert least_bytes(model, torch.float32) == outside + size
    assert placed(model, int(total / FITS) + 2, 0) is None
    free = int((outside + 3 * size) / HELD) + 2  # two layers, and room for one more that runs
    assert free < total / FITS
    found = placed(model, free, int(2 * size / HELD) + 2)
    assert found is not None
    assert [found[path] for path in layers] == [0, 0, "cpu", "cpu", "disk", "disk"]
    assert {path: place for path, place in found.items() if path not in layers} == {
        "model.embed_tokens": 0,
        "model.norm": 0,
        "model.rotary_emb": 0,
        "lm_head": 0,
    }
    on_cpu = placed(model, free, 10 * total, CPU)
    assert on_cpu is not None
    assert [on_cpu[path] for path in layers] == ["cpu", "cpu", *["disk"] * 4]
    held = placement(model, torch.float32, CUDA, free=free, free_host=0)
    assert held is not None
    assert (held.held, held.total) == (outside + 3 * size, total)
