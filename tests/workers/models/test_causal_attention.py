"""Our attention beside its definition in float64: forward, backward, padding, and what it hands on."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, MistralConfig, MistralForCausalLM

from atomscope_workers.models import causal_attention
from atomscope_workers.models.causal_attention import BLOCK, CAUSAL, KEPT

LENGTHS = [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7, KEPT, KEPT + 1, 2048]
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 7e-3}
"""Of a tensor's norm."""


class Layer(torch.nn.Module):
    """All that the interface looks at in a layer."""

    def __init__(self, groups: int = 1, *, is_causal: bool = True) -> None:
        super().__init__()
        self.num_key_value_groups = groups
        self.is_causal = is_causal


def attend(
    layer: Layer, *states: torch.Tensor, mask: torch.Tensor | None = None, **more: Any
) -> torch.Tensor:
    found, weights = AttentionInterface()[CAUSAL](layer, *states, mask, **more)
    assert weights is None
    return found


def states(
    length: int, *, documents: int = 2, heads: int = 6, groups: int = 2, width: int = 16, values: int = 8
) -> list[torch.Tensor]:
    """Queries, keys and values laid out as a model's projections leave them: tokens before heads."""
    random = torch.Generator().manual_seed(length)
    shapes = ((heads, width), (groups, width), (groups, values))
    return [torch.randn(documents, length, *shape, generator=random).transpose(1, 2) for shape in shapes]


def definition(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    length = query.shape[2]
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(later, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def with_gradients(
    attention: Callable[..., torch.Tensor], given: list[torch.Tensor], gradient: torch.Tensor
) -> list[torch.Tensor]:
    leaves = [item.detach().clone().requires_grad_() for item in given]
    found = attention(*leaves)
    found.backward(gradient)
    return [found.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_forward_and_backward_are_those_of_the_definition(length: int, dtype: torch.dtype) -> None:
    given = [item.to(dtype) for item in states(length)]
    gradient = torch.randn(2, length, 6, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = with_gradients(lambda *own: attend(Layer(3), *own, scaling=0.3), given, gradient)
    exact = with_gradients(
        lambda *own: definition(*own, 0.3), [item.double() for item in given], gradient.double()
    )
    for own, expected in zip(found, exact, strict=True):
        assert own.dtype == dtype
        # A single token's weights are one, whatever its query: the gradient there is zero.
        close = TOLERANCE[dtype] * max(float(expected.norm()), 1e-6)
        assert float((own.double() - expected).norm()) <= close


@pytest.mark.parametrize(("times", "offset"), [(10.0, 0.0), (1.0, 100.0)])
def test_large_scores_in_bfloat16_are_told_apart_as_finely_as_in_float32(times: float, offset: float) -> None:
    """Scores rounded to bfloat16, in steps of a half at 100, would be five to thirty times as far off."""
    query, key, value = states(150)
    query[..., 0] = key[..., 0] = (4 * offset) ** 0.5 / times**0.5
    given = [item.bfloat16() for item in (query * times**0.5, key * times**0.5, value)]
    gradient = torch.randn(2, 150, 6, 8, generator=torch.Generator().manual_seed(3)).bfloat16()
    found = with_gradients(lambda *own: attend(Layer(3), *own), given, gradient)
    exact = with_gradients(
        lambda *own: definition(*own, 0.25), [item.double() for item in given], gradient.double()
    )
    for own, expected in zip(found, exact, strict=True):
        assert float((own.double() - expected).norm()) <= 2e-2 * float(expected.norm())


def test_a_second_derivative_is_refused() -> None:
    leaves = [item.requires_grad_() for item in states(5)]
    (first,) = torch.autograd.grad(attend(Layer(3), *leaves).square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("length", [BLOCK + 1, KEPT + 1])
def test_a_document_is_attended_to_as_if_alone_and_what_pads_it_gets_no_gradient(length: int) -> None:
    wide = states(length)
    short = length - 20
    gradient = torch.randn(2, length, 6, 8, generator=torch.Generator().manual_seed(2))
    gradient[1, short:] = 0
    together = with_gradients(lambda *own: attend(Layer(3), *own), wide, gradient)
    alone = with_gradients(
        lambda *own: attend(Layer(3), *own), [item[1:, :, :short] for item in wide], gradient[1:, :short]
    )
    assert torch.allclose(together[0][1:, :short], alone[0], atol=1e-6)
    for own, expected in zip(together[1:], alone[1:], strict=True):
        assert torch.allclose(own[1:, :, :short], expected, atol=1e-5)
        assert not own[1, :, short:].any()


def test_without_a_scale_it_is_that_of_the_width() -> None:
    given = states(5)
    assert torch.allclose(attend(Layer(3), *given), definition(*given, 16**-0.5), atol=1e-6)


def test_weights_of_long_documents_are_not_kept() -> None:
    held: dict[int, int] = {}
    for length in (KEPT, KEPT + BLOCK):
        leaves = [item.bfloat16().requires_grad_() for item in states(length)]
        node = attend(Layer(3), *leaves).grad_fn
        assert node is not None
        held[length] = sum(item.numel() for item in node.saved_tensors)  # type: ignore[attr-defined]
    assert held[KEPT + BLOCK] == sum(item.numel() for item in states(KEPT + BLOCK))
    assert held[KEPT] > 10 * sum(item.numel() for item in states(KEPT)) / 4


def test_long_documents_in_float32_are_left_to_pytorchs_kernel() -> None:
    for length, own in ((KEPT, True), (KEPT + 1, False)):
        leaves = [item.requires_grad_() for item in states(length, values=16)]
        found = attend(Layer(3), *leaves).grad_fn
        assert (type(found).__name__ == "_CausalAttentionBackward") is own


def test_a_mask_a_bias_and_attention_both_ways_are_left_to_transformers() -> None:
    given = states(4, groups=6)
    both = torch.nn.functional.scaled_dot_product_attention(*given).transpose(1, 2)
    assert torch.allclose(attend(Layer(is_causal=False), *given), both, atol=1e-6)
    assert torch.allclose(attend(Layer(), *given, is_causal=False), both, atol=1e-6)
    everything = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    assert torch.allclose(attend(Layer(), *given, mask=everything), both, atol=1e-6)
    bias = torch.zeros(1, 1, 4, 4)
    bias[..., 0] = 50.0
    first = given[2][:, :, :1].transpose(1, 2).expand(-1, 4, -1, -1)
    assert torch.allclose(attend(Layer(), *given, position_bias=bias), first, atol=1e-4)


@pytest.mark.parametrize(
    "asked", [{"dropout": 0.5}, {"position_bias": 0}, {"cache": 0}, {"softcap": 0}, {"s_aux": 0}, {}]
)
def test_what_is_more_than_plain_attention_is_handed_on_as_it_was_asked(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    """The last case is a query that meets more keys than there are queries."""
    query, key, value = states(4, groups=6)
    query = query if asked else query[:, :, :2]
    handed: list[Any] = []

    def recorded(*given: Any, **more: Any) -> tuple[str, None]:
        handed.extend((given, more))
        return "handed on", None

    monkeypatch.setattr(causal_attention, "sdpa_attention_forward", recorded)
    assert attend(Layer(), query, key, value, **asked) == "handed on"
    (_, *tensors, mask, dropout, scaling, is_causal), more = handed
    assert all(own is given for own, given in zip(tensors, (query, key, value), strict=True))
    assert (mask, scaling, is_causal) == (None, None, None)
    assert {"dropout": dropout, **more} == {"dropout": 0.0, **asked}


@pytest.mark.parametrize(
    ("skip", "facts", "masked"),
    [
        (True, {}, False),
        (False, {}, True),
        (True, {"is_causal": False}, True),
        (True, {"use_bidirectional_attention": True}, True),
    ],
)
def test_padding_is_masked_but_where_attention_is_causal_and_may_go_without(
    skip: bool, facts: dict[str, bool], masked: bool
) -> None:
    padding = torch.ones(2, 6, dtype=torch.bool)
    padding[1, 4:] = False
    mask = AttentionMaskInterface()[CAUSAL](
        batch_size=2,
        q_length=6,
        kv_length=6,
        attention_mask=padding,
        allow_is_causal_skip=skip,
        config=SimpleNamespace(**facts),
    )
    assert (mask is not None) is masked
    assert mask is None or not mask[1, :, :, 4:].any()


@pytest.mark.parametrize("window", [3, BLOCK, 200])
def test_a_window_shorter_than_the_batch_is_kept_to(window: int) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(
        vocab_size=50, sliding_window=window, num_key_value_heads=1, attn_implementation="eager", **sizes
    )
    model = MistralForCausalLM(config).eval()
    ids = torch.arange(2 * 100).reshape(2, 100) % 50
    mask = torch.ones_like(ids)
    mask[1, 70:] = 0
    with torch.no_grad():
        eager = model(input_ids=ids, attention_mask=mask).logits
        model.set_attn_implementation(CAUSAL)
        own = model(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(own[mask.bool()], eager[mask.bool()], atol=1e-5)
