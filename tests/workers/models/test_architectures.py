"""Every architecture: gradients are autograd's, factor sums the documents', steering what PEFT loads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from atomscope.errors import InvalidInput
from atomscope.steering import Source, Target, norm, read_tensors, steer_folder
from atomscope.steering.names import peft_name
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.demo import finetune
from atomscope_workers.models.attention import attention_of
from atomscope_workers.models.base import ARCHITECTURES as ACCEPTED
from atomscope_workers.models.base import check_base
from atomscope_workers.models.load import load_lora_model
from atomscope_workers.models.positions import length_boundary
from atomscope_workers.pipeline.batches import collate
from atomscope_workers.pipeline.gradients import document_losses
from tests.fixtures.architectures import ARCHITECTURES, Architecture
from tests.fixtures.models import TinyAdapterFactory
from tests.workers.models.damage import edit_json, refused
from tests.workers.models.reference import (
    CPU,
    autograd,
    check_gradients,
    documents,
    hooked,
    logits,
    lora_weights,
    peft_model,
)


@dataclass(frozen=True)
class Case:
    """A base with a LoRA on every kind of layer, the output head included."""

    architecture: Architecture
    base: Path
    adapter: Path
    lora: Any
    reference: Any

    @property
    def documents(self) -> list[TokenizedDocument]:
        return documents(boundary=length_boundary(self.lora.base.config))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def base(name: str) -> Path:
        if name not in made:
            made[name] = ARCHITECTURES[name].save(tmp_path_factory.mktemp(name))
        return made[name]

    return base


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def case(
    request: pytest.FixtureRequest, bases: Callable[[str], Path], tiny_adapter: TinyAdapterFactory
) -> Case:
    architecture = ARCHITECTURES[request.param]
    base = bases(request.param)
    targets = (*architecture.targets, architecture.head)
    adapter = tiny_adapter(
        targets,
        base=base,
        fan_in_fan_out=request.param == "gpt2",
        save_embedding_layers=True,
        rank_pattern={architecture.targets[0]: 2},
        alpha_pattern={architecture.targets[-1]: 24},
    )
    return Case(
        architecture,
        base,
        adapter,
        load_lora_model(base, adapter, dtype=torch.float32, device=CPU),
        peft_model(base, adapter),
    )


def test_every_accepted_architecture_is_tried() -> None:
    assert {item.name for item in ARCHITECTURES.values()} == set(ACCEPTED)


def test_gradients_of_a_padded_batch_are_autograds_of_each_document_alone(case: Case) -> None:
    check_gradients(case.lora, case.reference, case.documents)


def test_losses_without_gradients_are_the_same(case: Case) -> None:
    items = case.documents
    found = document_losses(case.lora, collate(items, CPU))
    expected = [autograd(case.reference, item)[0] for item in items]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_factor_sums_are_those_of_the_documents_alone(case: Case) -> None:
    items = case.documents
    _, sums = hooked(case.lora, items)
    head = case.architecture.head
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    predicting, read = torch.empty(0), 0

    def record(name: str, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x = arguments[0][0].detach().double()
        # The output head runs where a target is predicted, and nowhere else.
        x = x[predicting] if head in name.split(".") else x[:read]
        inputs[name] = inputs.get(name, 0) + x.T @ x

        def on_gradient(gradient: torch.Tensor) -> None:
            s = gradient[0].double()
            outputs[name] = outputs.get(name, 0) + s.T @ s

        output.register_hook(on_gradient)

    modules = {
        peft_name(f"{path}.weight"): module
        for path, module in case.reference.named_modules()
        if path.endswith((".lora_A.default", ".lora_B.default"))
    }
    handles = [
        module.register_forward_hook(lambda _, args, out, name=name: record(name, args, out))
        for name, module in modules.items()
    ]
    for item in items:
        predicting, read = torch.from_numpy(np.flatnonzero(item.target_mask) - 1), item.read
        autograd(case.reference, item)
    for handle in handles:
        handle.remove()
    tokens = sum(item.read for item in items)
    targets = sum(int(item.target_mask.sum()) for item in items)
    for name in sums.groups:
        count = targets if head in name.split(".") else tokens
        assert sums.input_tokens[sums.groups[name]] == sums.output_tokens[name] == count
        for found, expected in (
            (sums.mean_input(name), inputs[name] / count),
            (sums.mean_output(name), outputs[name] / count),
        ):
            assert (found - expected).norm() <= 1e-3 * expected.norm(), name


def test_a_steered_adapter_loads_in_peft_and_answers_as_the_moved_weights(case: Case, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    vector = {
        item.name: generator.normal(size=item.shape).astype(np.float32) for item in case.lora.parameters
    }
    atom = Target("atom", 3)
    steered = steer_folder(case.adapter, {atom: vector}, {atom: 0.3}, Source("aud_1"))
    folder = steered.save(tmp_path / "steered")
    own = read_tensors(case.adapter / "adapter_model.safetensors")
    scale = 0.3 * norm({name: own[name] for name in vector}) / norm(vector)
    moved = peft_model(case.base, case.adapter)
    with torch.no_grad():
        for name, weight in lora_weights(moved).items():
            weight.add_(scale * torch.from_numpy(vector[name]))
    ids = torch.from_numpy(documents(1)[0].input_ids.astype(np.int64))
    found = logits(peft_model(case.base, folder), ids)
    assert torch.allclose(found, logits(moved, ids), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, logits(case.reference, ids), rtol=1e-2, atol=1e-2)
    # What PEFT saved of the base beside the LoRA is there still, untouched.
    written = load_file(folder / "adapter_model.safetensors")
    copies = {name for name in own if name not in vector}
    assert copies
    assert all((written[name].numpy() == own[name]).all() for name in copies)


def test_gpt_neoxs_head_is_found_under_the_name_it_had_before(
    bases: Callable[[str], Path], tiny_adapter: TinyAdapterFactory
) -> None:
    base = bases("gpt_neox")
    adapter = tiny_adapter(("lm_head",), base=base)
    plain = hooked(load_lora_model(base, adapter, dtype=torch.float32, device=CPU), documents(2))[0]
    path = adapter / "adapter_model.safetensors"
    renamed = {name.replace("lm_head", "embed_out"): tensor for name, tensor in load_file(path).items()}
    save_file(renamed, path)
    edit_json(adapter / "adapter_config.json", target_modules=["embed_out"])
    older = hooked(load_lora_model(base, adapter, dtype=torch.float32, device=CPU), documents(2))[0]
    assert older.gradients.keys() == renamed.keys()
    for name, gradients in older.gradients.items():
        assert torch.equal(gradients, plain.gradients[name.replace("embed_out", "lm_head")])


@pytest.mark.parametrize(
    ("given", "targets"), [(False, ("c_attn",)), (True, ("lm_head",)), (None, ("c_attn", "lm_head"))]
)
def test_fan_in_fan_out_is_that_of_the_layers_of_gpt2_or_refused(
    bases: Callable[[str], Path],
    tiny_adapter: TinyAdapterFactory,
    given: bool | None,
    targets: tuple[str, ...],
) -> None:
    base = bases("gpt2")
    adapter = tiny_adapter(targets, base=base, fan_in_fan_out="c_attn" in targets)
    edit_json(adapter / "adapter_config.json", fan_in_fan_out=given)
    if given is None:
        load_lora_model(base, adapter, dtype=torch.float32, device=CPU)
        return
    with pytest.raises(InvalidInput, match=f"{str(not given).lower()} is expected") as caught:
        load_lora_model(base, adapter, dtype=torch.float32, device=CPU)
    assert refused(caught, "invalid_config") == ("adapter_config.json", "fan_in_fan_out")


def test_soft_capped_scores_are_computed_where_they_are_not_ignored(bases: Callable[[str], Path]) -> None:
    assert attention_of(check_base(bases("gemma2")).config) == "eager"
    assert attention_of(check_base(bases("mistral")).config) == "sdpa"


def test_a_batch_on_both_sides_of_phi3s_boundary_is_split_or_a_document_depends_on_its_neighbours(
    bases: Callable[[str], Path], tiny_adapter: TinyAdapterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = bases("phi3")
    lora = load_lora_model(base, tiny_adapter(("qkv_proj",), base=base), dtype=torch.float32, device=CPU)
    assert length_boundary(lora.base.config) == 8
    items = documents(boundary=8)
    short = [row for row, item in enumerate(items) if len(item.input_ids) <= 8]
    assert 0 < len(short) < len(items)
    alone = torch.stack([hooked(lora, [item])[0].losses[0] for item in items])
    assert torch.allclose(hooked(lora, items)[0].losses, alone, rtol=1e-5)
    monkeypatch.setattr("atomscope_workers.pipeline.gradients.length_boundary", lambda _: None)
    unsplit = hooked(lora, items)[0].losses
    assert all(abs(unsplit[row] - alone[row]) > 1e-3 * alone[row] for row in short)


@pytest.mark.parametrize("beside", [0, 1, 2])
def test_phi3_reads_a_document_by_its_whole_length_where_its_last_target_lies_below_the_boundary(
    bases: Callable[[str], Path], tiny_adapter: TinyAdapterFactory, beside: int
) -> None:
    """Alone, beside shorter documents, and beside these and longer ones; and its loss without gradients."""
    base = bases("phi3")
    adapter = tiny_adapter(("qkv_proj",), base=base)
    lora = load_lora_model(base, adapter, dtype=torch.float32, device=CPU)
    boundary = length_boundary(lora.base.config)
    ids = np.random.default_rng(3).integers(0, 50, 11).astype(np.int32)
    longer = TokenizedDocument(90, ids, np.arange(11) == 7, least=boundary + 1)
    assert 7 < boundary < longer.read < len(ids)
    every = documents(boundary=boundary)
    others = [[], [item for item in every if not item.least], every][beside]
    reference = peft_model(base, adapter)
    check_gradients(lora, reference, [longer, *others])
    loss = float(document_losses(lora, collate([longer, *others], CPU))[0])
    assert loss == pytest.approx(autograd(reference, longer)[0], rel=1e-4)


def test_training_reads_phi3s_documents_as_each_is_read_alone(
    bases: Callable[[str], Path], tiny_adapter: TinyAdapterFactory
) -> None:
    base = bases("phi3")
    adapter = tiny_adapter(("qkv_proj",), base=base)
    lora = load_lora_model(base, adapter, dtype=torch.float32, device=CPU)
    lora.parameters[0].linear.weight.requires_grad_(True)
    every = documents(boundary=length_boundary(lora.base.config))
    assert {bool(item.least) for item in every} == {False, True}
    reference = peft_model(base, adapter)
    losses = [autograd(reference, item)[0] for item in every]
    mean = sum(losses) / sum(int(item.target_mask.sum()) for item in every)
    assert finetune._backward(lora, every) == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "phi3"])
def test_half_precision_gradients_point_where_float32_ones_do(
    bases: Callable[[str], Path], tiny_adapter: TinyAdapterFactory, name: str, dtype: torch.dtype
) -> None:
    base = bases(name)
    adapter = tiny_adapter(ARCHITECTURES[name].targets, base=base, fan_in_fan_out=name == "gpt2", dtype=dtype)
    items = documents(3)
    exact, _ = hooked(load_lora_model(base, adapter, dtype=torch.float32, device=CPU), items)
    rounded, _ = hooked(load_lora_model(base, adapter, dtype=torch.bfloat16, device=CPU), items)
    for row in range(len(items)):
        a, b = (
            torch.cat([found.gradients[key][row].flatten() for key in sorted(found.gradients)])
            for found in (exact, rounded)
        )
        assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.9
