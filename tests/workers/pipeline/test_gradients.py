"""Per-document gradients are those of autograd, whatever the batch, the padding and the LoRA."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.models.attention import fastest_attention
from atomscope_workers.models.load import adapter_disabled
from atomscope_workers.models.lora import LoraModel
from atomscope_workers.pipeline.batches import collate
from atomscope_workers.pipeline.factors import FactorMismatch, FactorSums, reduce_factors
from atomscope_workers.pipeline.gradients import (
    UnsupportedModel,
    document_losses,
    gradient_pass,
)
from tests.workers.pipeline.tiny import ATTENTION, EVERY, random_documents, tiny_lora

CPU = torch.device("cpu")


def autograd(lora: LoraModel, item: TokenizedDocument) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one document, unpadded, by autograd on the weights."""
    weights = {parameter.name: parameter.linear.weight for parameter in lora.parameters}
    ids = torch.from_numpy(item.input_ids.astype(np.int64))[None]
    labels = torch.where(torch.from_numpy(item.target_mask), ids[0], -100)
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        logits = lora.model(input_ids=ids, use_cache=False).logits[0].float()
        loss = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")
        grads = torch.autograd.grad(loss, list(weights.values()))
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    return float(loss.detach()), dict(zip(weights, grads, strict=True))


def flat(gradients: dict[str, torch.Tensor], row: int | None = None) -> torch.Tensor:
    return torch.cat(
        [(value if row is None else value[row]).flatten() for _, value in sorted(gradients.items())]
    )


def batched(lora: LoraModel, documents: list[TokenizedDocument], size: int) -> dict[int, torch.Tensor]:
    rows: dict[int, torch.Tensor] = {}
    with gradient_pass(lora) as run:
        for start in range(0, len(documents), size):
            batch = collate(documents[start : start + size], CPU)
            result = run(batch)
            rows |= {item: flat(result.gradients, row) for row, item in enumerate(batch.documents)}
    return rows


@pytest.mark.parametrize("targets", [ATTENTION, EVERY], ids=["q_v", "seven_modules"])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_float32_gradients_and_losses_equal_autograd_per_document(
    targets: tuple[str, ...], size: int
) -> None:
    lora = tiny_lora(targets)
    documents = random_documents(8)
    with gradient_pass(lora) as run:
        for start in range(0, len(documents), size):
            batch = collate(documents[start : start + size], CPU)
            result = run(batch)
            for row, item in enumerate(documents[start : start + size]):
                loss, expected = autograd(lora, item)
                assert float(result.losses[row]) == pytest.approx(loss, rel=1e-5)
                for name, value in expected.items():
                    actual = result.gradients[name][row]
                    assert actual.dtype == torch.float32
                    assert (actual - value).norm() <= 1e-5 * value.norm(), name


@pytest.mark.parametrize("size", [1, 4])
def test_what_follows_the_last_target_is_not_run_and_changes_nothing(size: int) -> None:
    lora = tiny_lora(EVERY)
    documents = random_documents(4)
    tail = np.arange(30, dtype=np.int32)
    longer = [
        TokenizedDocument(
            item.document,
            np.concatenate([item.input_ids, tail]),
            np.concatenate([item.target_mask, np.zeros(len(tail), dtype=np.bool_)]),
        )
        for item in documents
    ]
    sums, of_longer = FactorSums(), FactorSums()
    for chosen, factors in ((documents, sums), (longer, of_longer)):
        with gradient_pass(lora, factors) as run:
            for start in range(0, len(chosen), size):
                batch = collate(chosen[start : start + size], CPU)
                assert batch.input_ids.shape[1] < len(tail)
                result = run(batch)
                for place, row in enumerate(batch.documents):
                    loss, expected = autograd(lora, longer[row])
                    assert float(result.losses[place]) == pytest.approx(loss, rel=1e-5)
                    for name, value in expected.items():
                        assert (result.gradients[name][place] - value).norm() <= 1e-5 * value.norm(), name
    read = sum(len(item.input_ids) - 1 for item in documents)  # of which the last token is a target
    for name in sums.groups:
        assert sums.output_tokens[name] == of_longer.output_tokens[name] == read
        assert torch.equal(sums.mean_input(name), of_longer.mean_input(name))
        assert torch.equal(sums.mean_output(name), of_longer.mean_output(name))


@pytest.mark.parametrize(("shortest", "longest"), [(50, 150), (400, 700)])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_long_documents_equal_autograd(shortest: int, longest: int, recompute: bool) -> None:
    """Of more queries than attention takes at once, and of more tokens than whose weights it keeps."""
    lora = tiny_lora(EVERY)
    documents = random_documents(4, shortest=shortest, longest=longest)
    lengths = sorted(len(item.input_ids) for item in documents)
    assert lengths[0] < lengths[-1] - 20
    with gradient_pass(lora, recompute=recompute) as run:
        result = run(collate(documents, CPU))
    for row, item in enumerate(documents):
        loss, expected = autograd(lora, item)
        assert float(result.losses[row]) == pytest.approx(loss, rel=1e-5)
        for name, value in expected.items():
            assert (result.gradients[name][row] - value).norm() <= 2e-5 * value.norm(), name


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("trained", [[0], [1], [2], [1, 2]])
def test_layers_before_the_first_trained_one_change_no_gradient(trained: list[int], recompute: bool) -> None:
    lora = tiny_lora(EVERY, layers=3, trained=trained)
    documents = random_documents(3)
    with gradient_pass(lora, recompute=recompute) as run:
        result = run(collate(documents, CPU))
    for row, item in enumerate(documents):
        loss, expected = autograd(lora, item)
        assert float(result.losses[row]) == pytest.approx(loss, rel=1e-5)
        assert result.gradients.keys() == expected.keys()
        for name, value in expected.items():
            assert (result.gradients[name][row] - value).norm() <= 1e-5 * value.norm(), name


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
def test_a_lora_on_the_head_alone_runs_no_layer_backwards() -> None:
    lora = tiny_lora(("lm_head",), layers=3)
    documents = random_documents(3)
    batch = collate(documents, CPU)
    with gradient_pass(lora) as run:
        result = run(batch)
        whole = multiplied(lambda: run(batch))
    for row, item in enumerate(documents):
        for name, value in autograd(lora, item)[1].items():
            assert (result.gradients[name][row] - value).norm() <= 1e-5 * value.norm(), name
    head = 2 * lora.base.get_output_embeddings().weight.numel() * len(batch.targets)
    assert whole < multiplied(lambda: document_losses(lora, batch)) + 3 * head


def multiplied(work: Callable[[], object]) -> int:
    """FLOP of the matrix products of `work`, but for those of fused attention."""
    with FlopCounterMode(display=False) as counter:
        work()
    counts = counter.get_flop_counts()["Global"]
    names = ("mm", "addmm", "bmm", "baddbmm", "baddbmm_")
    products = [getattr(torch.ops.aten, name) for name in names]
    return sum(counts.get(operator, 0) for operator in products)


def test_a_batch_costs_one_forward_and_one_backward_pass_and_its_gradients_and_nothing_else() -> None:
    """A backward pass to activations multiplies as much as a forward pass; one to weights too, twice that.

    And logits are those of targets alone.
    """
    lora = tiny_lora(EVERY)
    batch = collate(random_documents(6), CPU)
    forward = multiplied(lambda: document_losses(lora, batch))
    tokens = batch.input_ids.numel()
    own = sum(2 * tokens * rows * columns for rows, columns in (item.shape for item in lora.parameters))
    with gradient_pass(lora) as run:
        whole = multiplied(lambda: run(batch))
    assert whole == pytest.approx(2 * forward + own, rel=0.01)
    assert all(parameter.grad is None for parameter in lora.model.parameters())
    head = lora.base.get_output_embeddings().weight
    assert len(batch.targets) < 0.7 * tokens
    with fastest_attention(lora):
        everywhere = multiplied(lambda: lora.base(input_ids=batch.input_ids, use_cache=False))
    spared = 2 * head.numel() * (tokens - len(batch.targets))
    assert forward == pytest.approx(everywhere - spared, rel=0.01)


def test_layers_before_the_first_trained_one_are_not_run_backwards() -> None:
    batch = collate(random_documents(6), CPU)

    def forward(layers: int) -> int:
        lora = tiny_lora(EVERY, layers=layers, trained=[layers - 1])
        return multiplied(lambda: document_losses(lora, batch))

    def whole(trained: list[int]) -> int:
        lora = tiny_lora(EVERY, layers=3, trained=trained)
        with gradient_pass(lora) as run:
            return multiplied(lambda: run(batch))

    above = whole([2])
    assert above == pytest.approx(whole([0]) - (forward(3) - forward(1)), rel=0.01)
    assert above < 0.8 * whole([0])


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(list(range(9))), size=st.integers(1, 9), count=st.integers(1, 9))
def test_a_documents_gradient_does_not_depend_on_its_batch(order: list[int], size: int, count: int) -> None:
    lora = SHARED
    documents = [DOCUMENTS[row] for row in order[:count]]
    for row, gradient in batched(lora, documents, size).items():
        alone = ALONE[row]
        assert (gradient - alone).norm() <= 1e-5 * alone.norm()


SHARED = tiny_lora(EVERY)
DOCUMENTS = random_documents(9)
ALONE = batched(SHARED, DOCUMENTS, 1)


def test_bfloat16_gradients_point_where_float32_ones_do() -> None:
    documents = random_documents(10)
    reference = batched(tiny_lora(EVERY), documents, 1)
    for row, gradient in batched(tiny_lora(EVERY, dtype=torch.bfloat16), documents, 4).items():
        assert torch.nn.functional.cosine_similarity(gradient, reference[row], dim=0) > 0.99


def test_the_same_batches_give_identical_bits() -> None:
    first, second = (batched(tiny_lora(EVERY), random_documents(7), 3) for _ in range(2))
    assert all(torch.equal(first[row], second[row]) for row in first)


def test_base_losses_are_those_without_the_adapter_and_leave_no_gradient_flag_set() -> None:
    lora = tiny_lora()
    batch = collate(random_documents(4), CPU)
    adapted = document_losses(lora, batch)
    with adapter_disabled(lora):
        base = document_losses(lora, batch)
    assert not torch.allclose(base, adapted)
    assert not any(parameter.requires_grad for parameter in lora.model.parameters())
    for parameter in lora.parameters:
        parameter.linear.weight.data.zero_()
    assert torch.allclose(document_losses(lora, batch), base, rtol=1e-6)


def test_hooks_are_gone_after_the_pass_even_when_it_fails() -> None:
    lora = tiny_lora()
    with pytest.raises(RuntimeError, match="on purpose"), gradient_pass(lora) as run:  # noqa: PT012
        run(collate(random_documents(2), CPU))
        raise RuntimeError("on purpose")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lora.model.modules())


def test_a_training_model_and_a_trainable_parameter_are_refused() -> None:
    lora = tiny_lora()
    lora.model.train()
    with pytest.raises(ValueError, match="eval mode"), gradient_pass(lora):
        pass
    lora.model.eval()
    lora.parameters[0].linear.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="requires a gradient"), gradient_pass(lora):
        pass


def test_a_linear_that_runs_twice_in_a_pass_gives_the_sum_over_its_calls() -> None:
    lora = tiny_lora(layers=1)
    first = lora.base.model.layers[0]
    lora.base.model.layers.append(first)  # a layer whose weights are used twice
    lora.base.config.num_hidden_layers = 2
    item = random_documents(1)[0]
    sums = FactorSums()
    with gradient_pass(lora, sums) as run:
        result = run(collate([item], CPU))
    _, expected = autograd(lora, item)
    for name, value in expected.items():
        assert (result.gradients[name][0] - value).norm() <= 1e-5 * value.norm()
        assert sums.output_tokens[name] == 2 * item.read


def test_documents_without_a_predictable_target_are_refused() -> None:
    ids = np.arange(5, dtype=np.int32)
    for mask in ([False] * 5, [True] + [False] * 4):
        item = TokenizedDocument(document=7, input_ids=ids, target_mask=np.array(mask))
        with pytest.raises(ValueError, match="document 7"):
            collate([item], CPU)
    with pytest.raises(ValueError, match="at least one"):
        collate([], CPU)


def test_a_lora_layer_that_sees_no_token_rows_is_refused() -> None:
    lora = tiny_lora()
    target = lora.parameters[0].linear
    flatten = target.register_forward_pre_hook(lambda _, arguments: (arguments[0].flatten(0, 1),))
    with (
        pytest.raises(UnsupportedModel, match="not \\(documents, tokens, features\\)"),
        gradient_pass(lora) as run,
    ):
        run(collate(random_documents(2), CPU))
    flatten.remove()


def test_factor_sums_are_those_of_the_unpadded_documents() -> None:
    lora = tiny_lora(EVERY)
    documents = random_documents(6)
    sums = FactorSums()
    with gradient_pass(lora, sums) as run:
        for start in (0, 4):
            run(collate(documents[start : start + 4], CPU))
    tokens = sum(item.read for item in documents)
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    read = 0

    def record(name: str, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x = arguments[0][0, :read].detach().double()
        inputs[name] = inputs.get(name, 0) + x.T @ x

        def on_gradient(gradient: torch.Tensor) -> None:
            s = gradient[0].double()
            outputs[name] = outputs.get(name, 0) + s.T @ s

        output.register_hook(on_gradient)

    handles = [
        item.linear.register_forward_hook(lambda _, args, out, name=item.name: record(name, args, out))
        for item in lora.parameters
    ]
    for item in documents:
        read = item.read
        autograd(lora, item)
    for handle in handles:
        handle.remove()
    for item in lora.parameters:
        assert sums.input_tokens[sums.groups[item.name]] == tokens
        assert torch.allclose(sums.mean_input(item.name), inputs[item.name] / tokens, rtol=1e-4, atol=1e-6)
        assert torch.allclose(sums.mean_output(item.name), outputs[item.name] / tokens, rtol=1e-4, atol=1e-6)


def test_modules_that_read_the_same_tensor_share_one_input_sum() -> None:
    lora = tiny_lora(EVERY)
    sums = FactorSums()
    with gradient_pass(lora, sums) as run:
        run(collate(random_documents(3), CPU))
    layer = "base_model.model.model.layers.0."
    leaders = {sums.groups[f"{layer}self_attn.{name}_proj.lora_A.weight"] for name in "qkv"}
    assert leaders == {f"{layer}self_attn.q_proj.lora_A.weight"}
    assert sums.groups[f"{layer}mlp.up_proj.lora_A.weight"] == f"{layer}mlp.gate_proj.lora_A.weight"
    assert sums.groups[f"{layer}self_attn.o_proj.lora_A.weight"] == f"{layer}self_attn.o_proj.lora_A.weight"
    assert len(sums.inputs) == 2 * (4 + 7)


def test_reducing_shards_equals_one_pass_over_all_and_refuses_other_groupings() -> None:
    lora = tiny_lora()
    documents = random_documents(6)
    parts = [FactorSums(), FactorSums(), FactorSums()]
    for sums, chosen in zip(parts, (documents[:2], documents[2:], documents), strict=True):
        with gradient_pass(lora, sums) as run:
            for item in chosen:
                run(collate([item], CPU))
    total = reduce_factors(parts[:2])
    for name, value in parts[2].outputs.items():
        torch.testing.assert_close(
            total.outputs[name].matrix(),
            value.matrix().double(),
            rtol=1e-5,
            atol=1e-6 * float(value.matrix().max()),
        )
    other = FactorSums(groups={"x": "x"})
    with pytest.raises(FactorMismatch):
        reduce_factors([parts[0], other])
    with pytest.raises(FactorMismatch):
        reduce_factors([])
