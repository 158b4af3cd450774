"""Activation checkpointing: a layer keeps its input alone, and is run again in the backward pass.

Chen et al., Training Deep Nets with Sublinear Memory Cost (2016). A pass costs one forward more, and holds
the inner activations of one layer instead of all. The numbers are the same to the bit: the same kernels see
the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from atomscope_workers.models.offload import decoder_layers

Forward = Callable[..., Any]


@contextmanager
def recomputed_layers(model: torch.nn.Module, begin: Callable[[], None]) -> Generator[None]:
    """Within it, passes under autograd keep the inputs of the model's layers and compute the rest twice.

    The first time without autograd, the second within the backward pass; `begin` is called before every
    second time. Raises `ValueError` for a model without layers that are known as such.
    """
    layers = decoder_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layers that could be recomputed")
    with ExitStack() as stack:
        for layer in layers.values():
            # accelerate puts a forward of its own on the instance; without one, that of the class is run.
            own = vars(layer).get("forward")
            stack.callback(partial(_restore, layer, own))
            layer.forward = partial(_twice, layer.forward, begin)
        yield


def _restore(layer: torch.nn.Module, own: Forward | None) -> None:
    if own is None:
        del layer.forward
    else:
        layer.forward = own


def _twice(own: Forward, begin: Callable[[], None], hidden: torch.Tensor, *rest: Any, **named: Any) -> Any:  # noqa: ANN401
    if not torch.is_grad_enabled() or not hidden.requires_grad:
        return own(hidden, *rest, **named)
    again = False

    def run(states: torch.Tensor) -> Any:  # noqa: ANN401
        nonlocal again
        if again:
            begin()
        again = True
        return own(states, *rest, **named)

    # Re-entrant, so that hooks of the first time, without autograd, capture nothing.
    return checkpoint(run, hidden, use_reentrant=True, preserve_rng_state=False)
