"""Causal attention on a CPU by plain matrix products, a few queries at a time, and its backward pass.

softmax(Q K^T * scale) V, each token over those up to itself. PyTorch's fused kernel works through one head of
one document after another, in products too small for a CPU, and computes scores of later tokens too where it
is given a mask; attention written out in operators holds all scores several times over. Here a block of
queries meets the keys up to its own end, and query heads that share a key head are rows of one product.
In long documents weights are computed again in the backward pass, so that what is held does not grow with the
square of the length.

Documents padded on the right need no mask: no real token comes after padding. Where a model asks for more
than causal attention (a window shorter than the batch, attention both ways, a bias) transformers' `sdpa` runs
the layer, and without a mask where documents are long and in float32, in which it is faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from atomscope_workers.models.precision import bfloat16_products

CAUSAL = "atomscope_causal"
"""Name under which transformers knows this attention."""
BLOCK = 64
"""Queries of a block."""
KEPT = 512
"""Tokens up to which weights are kept for the backward pass: a fifth to a half of what a layer holds."""


class _CausalAttention(torch.autograd.Function):
    """Queries (B, H, T, d), keys (B, G, T, d) and values (B, G, T, e) to (B, T, H, e); G divides H."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        documents, heads, length, _ = query.shape
        keep = length <= KEPT and any(ctx.needs_input_grad)
        keys, values = _wide(key.flatten(0, 1)), value.flatten(0, 1)
        found = query.new_empty(documents, length, heads, value.shape[-1])
        for rows in _blocks(length):
            weights = _weights(query, keys, rows, scale)
            _put(found, rows, torch.bmm(weights, values[:, : rows.stop]))
            if keep:
                kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scale = scale
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, *kept = ctx.saved_tensors
        scale: float = ctx.scale
        documents, heads, length, features = query.shape
        keys, values = key.flatten(0, 1), value.flatten(0, 1)
        wide = keys if kept else _wide(keys)
        # What later blocks add to a key is summed in float32: there are as many parts as blocks.
        of_keys, of_values = (torch.zeros_like(item, dtype=_sum_dtype(item)) for item in (keys, values))
        of_queries = query.new_empty(documents, length, heads, features)
        by_head = gradient.transpose(1, 2)
        for index, rows in enumerate(_blocks(length)):
            seen = slice(rows.stop)
            weights = kept[index] if kept else _weights(query, wide, rows, scale)
            given = _rows_of_keys(by_head, keys, rows)
            _add_product(of_values[:, seen], weights, given, 1.0)
            of_weights = torch.bmm(given, values[:, seen].transpose(1, 2))
            of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            product = query.new_empty(*given.shape[:2], features)
            product.baddbmm_(of_scores, keys[:, seen], beta=0, alpha=scale)
            _put(of_queries, rows, product)
            _add_product(of_keys[:, seen], of_scores, _rows_of_keys(query, keys, rows), scale)
        return (
            of_queries.transpose(1, 2),
            of_keys.to(key.dtype).view(key.shape),
            of_values.to(value.dtype).view(value.shape),
            None,
        )


def _blocks(length: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK))


def _rows_of_keys(states: torch.Tensor, keys: torch.Tensor, rows: slice) -> torch.Tensor:
    """Of (B, H, T, d) the tokens `rows` (n): (B G, H / G n, d), the queries that meet a key head together."""
    documents = states.shape[0]
    by_group = states[:, :, rows].unflatten(1, (keys.shape[0] // documents, -1))
    return by_group.reshape(keys.shape[0], -1, states.shape[-1])


def _put(whole: torch.Tensor, rows: slice, block: torch.Tensor) -> None:
    """A block as `_rows_of_keys` lays it out, to its tokens in (B, T, H, d)."""
    documents, _, heads, features = whole.shape
    count = rows.stop - rows.start
    whole[:, rows] = block.view(documents, heads, count, features).transpose(1, 2)


def _weights(query: torch.Tensor, keys: torch.Tensor, rows: slice, scale: float) -> torch.Tensor:
    """Attention of the queries `rows` over the keys up to the last of them, (B G, H / G n, keys).

    Keys are `_wide`, and so are scores: in bfloat16 those of 100 would be told apart by halves.
    """
    queries, count = _wide(_rows_of_keys(query, keys, rows)), rows.stop - rows.start
    scores = queries.new_empty(*queries.shape[:2], rows.stop)
    with bfloat16_products(query.device) if query.dtype == torch.bfloat16 else nullcontext():
        scores.baddbmm_(queries, keys[:, : rows.stop].transpose(1, 2), beta=0, alpha=scale)
    later = scores.new_full((count, count), float("-inf")).triu_(1)
    scores.view(keys.shape[0], -1, count, rows.stop)[..., rows] += later
    return torch.softmax(scores, -1).to(query.dtype)


def _wide(states: torch.Tensor) -> torch.Tensor:
    return states.to(_sum_dtype(states))


def _sum_dtype(states: torch.Tensor) -> torch.dtype:
    """float32, or what is wider."""
    return torch.promote_types(states.dtype, torch.float32)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float) -> None:
    """Add left^T right * scale, multiplied in their own dtype, to a total that is `_wide`."""
    if left.dtype == total.dtype:
        total.baddbmm_(left.transpose(1, 2), right, alpha=scale)
    else:
        total.add_(torch.bmm(left.transpose(1, 2), right), alpha=scale)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,  # noqa: ANN401
) -> tuple[torch.Tensor, None]:
    """What transformers calls: (B, T, H, e)."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    plain = attention_mask is None and causal and not dropout and query.shape[2] == key.shape[2]
    # Of scores computed twice in float32 PyTorch's kernel, which has no mask to read here, makes less.
    plain = plain and (query.dtype != torch.float32 or query.shape[2] <= KEPT)
    asked = any(more.get(name) is not None for name in ("position_bias", "cache", "softcap", "s_aux"))
    if not plain or asked:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **more
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    found: torch.Tensor = _CausalAttention.apply(query, key, value, scale)
    return found, None


def _mask(*arguments: Any, **named: Any) -> torch.Tensor | None:  # noqa: ANN401
    """The mask of `sdpa`, where padding on the right is no reason for one in causal attention."""
    config = named.get("config")
    both_ways = getattr(config, "use_bidirectional_attention", False) or not getattr(
        config, "is_causal", True
    )
    if named.get("allow_is_causal_skip") and not both_ways:
        named["attention_mask"] = None
    return sdpa_mask(*arguments, **named)


AttentionInterface.register(CAUSAL, _attend)
AttentionMaskInterface.register(CAUSAL, _mask)
