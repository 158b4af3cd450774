"""A model steered in this process: what it computes within the context, and that nothing of it stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import atomscope
from atomscope_workers.models.load import load_lora_model
from atomscope_workers.steered import steered
from tests.fixtures.models import TinyAdapterFactory
from tests.workers.models.reference import CPU, documents, logits, lora_weights, peft_model
from tests.workers.models.steering import load_beside, make_bundle

IDS = torch.from_numpy(documents(1)[0].input_ids.astype(np.int64))
TARGETS = ("q_proj", "v_proj", "lm_head")


@pytest.fixture(scope="module")
def adapter(tiny_adapter: TinyAdapterFactory) -> Path:
    return tiny_adapter(TARGETS, save_embedding_layers=True, use_rslora=True)


@pytest.fixture(scope="module")
def bundle(tiny_llama: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> atomscope.Bundle:
    return make_bundle(tmp_path_factory.mktemp("steered") / "bundle", tiny_llama, adapter)


@pytest.fixture
def model(tiny_llama: Path, adapter: Path) -> Any:
    return peft_model(tiny_llama, adapter)


def bits(model: Any) -> dict[str, bytes]:
    """Every byte of every parameter."""
    return {
        name: weight.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, weight in model.named_parameters()
    }


def test_within_it_the_model_answers_as_the_steered_adapter_does(
    model: Any, bundle: atomscope.Bundle, tiny_llama: Path, tmp_path: Path
) -> None:
    strengths: dict[int | str, float] = {4: 0.2, "behaviour:0": -0.3}
    before, plain = bits(model), logits(model, IDS)
    expected = logits(peft_model(tiny_llama, bundle.steer(strengths).save(tmp_path / "s")), IDS)
    with steered(model, bundle, strengths):
        assert torch.equal(logits(model, IDS), expected)
    assert not torch.allclose(plain, expected, rtol=1e-2, atol=1e-2)
    assert bits(model) == before
    assert torch.equal(logits(model, IDS), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_of_any_dtype_get_every_bit_back(
    tiny_llama: Path, adapter: Path, bundle: atomscope.Bundle, dtype: torch.dtype
) -> None:
    lora = load_lora_model(tiny_llama, adapter, dtype=dtype, device=CPU)
    lora.parameters[0].linear.weight.data[0, 0] = 0.0
    with pytest.raises(atomscope.SteeringError, match="not the audited one: 1 tensor differs"):
        steered(lora, bundle, {4: 0.1}).__enter__()
    lora = load_lora_model(tiny_llama, adapter, dtype=dtype, device=CPU)
    before = bits(lora.model)
    with steered(lora, bundle, {4: 0.3}):
        within = bits(lora.model)
    assert {name for name in before if before[name] != within[name]} == {
        name for name in before if ".lora_" in name
    }
    assert bits(lora.model) == before


def test_whatever_is_raised_within_it_the_weights_are_restored(model: Any, bundle: atomscope.Bundle) -> None:
    before = bits(model)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), steered(model, bundle, {4: 0.3}):
            raise error
        assert bits(model) == before


def test_contexts_nest_add_up_and_are_left_one_by_one(model: Any, bundle: atomscope.Bundle) -> None:
    before = bits(model)
    with steered(model, bundle, {4: 0.3, 9: -0.1}):
        both = {name: weight.detach().clone() for name, weight in lora_weights(model).items()}
    with steered(model, bundle, {4: 0.3}):
        outer = bits(model)
        with steered(model, bundle, {9: -0.1}):
            for name, weight in lora_weights(model).items():
                assert torch.allclose(weight, both[name], rtol=1e-5, atol=1e-6)
        assert bits(model) == outer
    assert bits(model) == before


def test_alpha_moves_by_the_vector_as_it_is(model: Any, bundle: atomscope.Bundle) -> None:
    own = {name: weight.detach().clone() for name, weight in lora_weights(model).items()}
    vector = bundle.vector(4)
    with steered(model, bundle, {4: 0.01}, unit="alpha"):
        for name, weight in lora_weights(model).items():
            assert torch.allclose(weight, own[name] + 0.01 * torch.from_numpy(vector[name].copy()))


def test_a_step_that_the_dtype_cannot_hold_moves_nothing(
    tiny_llama: Path, adapter: Path, bundle: atomscope.Bundle
) -> None:
    lora = load_lora_model(tiny_llama, adapter, dtype=torch.float16, device=CPU)
    before = bits(lora.model)
    huge = 60_000.0 / max(float(np.abs(tensor).max()) for tensor in bundle.vector(4).values())
    with pytest.raises(atomscope.SteeringError):
        steered(lora, bundle, {4: 99.0, 9: huge}).__enter__()
    assert bits(lora.model) == before


def test_the_audited_adapter_is_told_from_another_that_is_active_with_it(
    model: Any, bundle: atomscope.Bundle, tmp_path: Path
) -> None:
    load_beside(model, bundle.steer({9: 0.2}, format="delta").save(tmp_path / "delta"), "delta")
    before = bits(model)
    with pytest.raises(atomscope.SteeringError, match=r"several adapters are active \(default, delta\)"):
        steered(model, bundle, {4: 0.1}).__enter__()
    with steered(model, bundle, {4: 0.1}, adapter_name="default"):
        within = bits(model)
    assert {name for name in before if before[name] != within[name]} == {
        name for name in before if ".lora_" in name and ".default." in name
    }
    with pytest.raises(atomscope.SteeringError, match="not the audited one"):
        steered(model, bundle, {4: 0.1}, adapter_name="delta").__enter__()
    model.set_adapter("delta")
    with pytest.raises(atomscope.SteeringError, match="'default' is not active"):
        steered(model, bundle, {4: 0.1}, adapter_name="default").__enter__()
    assert bits(model) == before


def test_a_model_on_which_steering_would_do_nothing_is_refused(
    model: Any, bundle: atomscope.Bundle, tiny_llama: Path, tiny_adapter: TinyAdapterFactory
) -> None:
    with pytest.raises(atomscope.SteeringError, match="no LoRA by the name 'other'"):
        steered(model, bundle, {4: 0.1}, adapter_name="other").__enter__()
    with model.disable_adapter(), pytest.raises(atomscope.SteeringError, match="is not active"):
        steered(model, bundle, {4: 0.1}).__enter__()
    other = peft_model(tiny_llama, tiny_adapter(("q_proj",)))
    with pytest.raises(atomscope.SteeringError, match=r"not the audited one: \d+ tensors differ"):
        steered(other, bundle, {4: 0.1}).__enter__()
    same_shapes = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_llama), str(tiny_adapter(("q_proj", "v_proj"), seed=1))
    )
    same_shapes.merge_adapter()
    with pytest.raises(atomscope.SteeringError, match="merged into the base"):
        steered(same_shapes, bundle, {4: 0.1}).__enter__()


@pytest.mark.parametrize("strengths", [{}, {5: 0.1}, {"behaviour:3": 0.1}, {4: float("nan")}, {4: 101.0}])
def test_strengths_that_cannot_be_met_move_nothing(
    model: Any, bundle: atomscope.Bundle, strengths: Any
) -> None:
    before = bits(model)
    with pytest.raises(atomscope.SteeringError):
        steered(model, bundle, strengths).__enter__()
    assert bits(model) == before
