"""Per-document gradients of every LoRA matrix from one forward and one backward pass.

The gradient of a linear layer's weight is a sum of outer products over tokens, G = sum_t s_t x_t^T, with x
the layer's input and s the gradient at its output. Hooks capture both, so a batched GEMM gives the gradient
of each document of the batch alone, and no weight gradient is ever formed: the only thing that requires a
gradient is the input of the first layer with a LoRA. The same x and s feed the Kronecker factor sums.

The loss is the *summed* cross-entropy of a document's target tokens, so a document's gradient does not
depend on the documents beside it. Logits are computed at the predicting tokens only: a hook on the model's
output head hands it those rows, so whatever the model does to its logits afterwards stays its own. A LoRA on
the head sees those rows too. A batch that a model would read otherwise than its documents alone is split.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from atomscope.errors import AtomscopeError
from atomscope_workers.models.attention import fastest_attention
from atomscope_workers.models.lora import LoraModel
from atomscope_workers.models.offload import decoder_layers
from atomscope_workers.models.positions import length_boundary
from atomscope_workers.pipeline.batches import Batch
from atomscope_workers.pipeline.factors import FactorSums
from atomscope_workers.pipeline.recompute import recomputed_layers
from atomscope_workers.pipeline.splitting import split_at_length
from atomscope_workers.pipeline.target_loss import target_losses, target_losses_and_gradient


class UnsupportedModel(AtomscopeError):  # noqa: N818
    """The model's forward pass does something from which per-document gradients cannot be read."""


@dataclass(frozen=True)
class BatchGradients:
    """What one pass over B documents gives; rows are in batch order."""

    losses: torch.Tensor
    """float64 (B,): summed cross-entropy of each document's targets, in nats."""
    gradients: dict[str, torch.Tensor]
    """Parameter name -> float32 (B, d_out, d_in)."""


GradientPass = Callable[[Batch], BatchGradients]


@dataclass
class _Capture:
    """State of one pass: the batch, what was captured, and which inputs have been seen."""

    batch: Batch
    gradients: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    seen: dict[tuple[Any, ...], str] = field(default_factory=dict[tuple[Any, ...], str])


@contextmanager
def gradient_pass(
    lora: LoraModel, factors: FactorSums | None = None, *, recompute: bool = False
) -> Generator[GradientPass, None, None]:
    """Install hooks on `lora` and yield a function from a batch to its gradients; the hooks go on leaving.

    With `factors`, every pass also adds its tokens to them. Which modules share an input is decided on the
    first pass by the identity of the tensor and kept in `factors.groups`. With `recompute`, and for a base
    that is larger than its device, layers are run twice and only their inputs kept: the same bits, for less
    memory and more time.

    Raises `ValueError` when the model is in training mode or a parameter requires a gradient, and
    `UnsupportedModel` when the model has no hookable embeddings or output head, or a LoRA layer's input is
    not (documents, tokens, features) nor, on the output head, (1, targets, features).
    """
    if lora.model.training:
        raise ValueError("the model must be in eval mode: dropout would change the gradients")
    if any(parameter.requires_grad for parameter in lora.model.parameters()):
        raise ValueError("a parameter requires a gradient; weight gradients must not be formed")
    state: list[_Capture] = []
    with ExitStack() as stack:
        stack.callback(_begin_gradients(lora).remove)
        stack.enter_context(fastest_attention(lora))
        in_head = _modules_of_head(lora)
        for parameter in lora.parameters:
            hook = partial(_capture, parameter.name, parameter.linear in in_head, state, factors)
            stack.callback(parameter.linear.register_forward_hook(hook).remove)
        if recompute or lora.offloaded:
            stack.enter_context(recomputed_layers(lora.base, partial(_begin_layer, state)))

        def run_whole(batch: Batch) -> BatchGradients:
            capture = _Capture(batch)
            state.append(capture)
            try:
                with torch.enable_grad():
                    logits = target_logits(lora, batch)
                    token_losses, gradient = target_losses_and_gradient(logits.detach(), batch.targets)
                    logits.backward(gradient)
            finally:
                state.clear()
            for parameter in lora.parameters:
                if parameter.name not in capture.gradients:
                    # Not on the path of this batch (an idle expert, an unused tower): its gradient is zero.
                    shape = (len(batch.documents), *parameter.shape)
                    capture.gradients[parameter.name] = torch.zeros(shape, device=lora.device)
            return BatchGradients(_by_document(token_losses, batch), capture.gradients)

        def run(batch: Batch) -> BatchGradients:
            parts = split_at_length(batch, length_boundary(lora.base.config))
            if len(parts) == 1:
                return run_whole(batch)
            found = [(rows, run_whole(part)) for rows, part in parts]
            return BatchGradients(
                _joined([(rows, item.losses) for rows, item in found]),
                {
                    parameter.name: _joined([(rows, item.gradients[parameter.name]) for rows, item in found])
                    for parameter in lora.parameters
                },
            )

        yield run


def document_losses(lora: LoraModel, batch: Batch) -> torch.Tensor:
    """Summed cross-entropy of each document's targets, float64 (B,), by a forward pass alone."""
    parts = split_at_length(batch, length_boundary(lora.base.config))
    with torch.no_grad():
        return _joined([(rows, _losses_of_part(lora, part)) for rows, part in parts])


def gradient_norms(gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Norm of each document's whole gradient, float64 (B,), from its parts (B, d_out, d_in)."""
    parts = [torch.linalg.vector_norm(part, dim=(1, 2), dtype=torch.float64) for part in gradients.values()]
    return torch.linalg.vector_norm(torch.stack(parts), dim=0)


def target_logits(lora: LoraModel, batch: Batch) -> torch.Tensor:
    """Logits at the predicting tokens alone, in the model's dtype (n, vocabulary), in the targets' order.

    A batch on both sides of the model's length boundary is to be split before. Raises `UnsupportedModel`.
    """
    head: torch.nn.Module | None = lora.base.get_output_embeddings()  # type: ignore[assignment]
    if head is None:
        raise UnsupportedModel(f"{type(lora.base).__name__} has no output head to take logits from")

    def pick(_: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden: torch.Tensor = arguments[0]
        if hidden.shape[:-1] != batch.input_ids.shape:
            raise UnsupportedModel(f"the output head was given {tuple(hidden.shape)}, not one row a token")
        rows = hidden.flatten(0, 1).index_select(0, batch.predictors)
        return rows.unsqueeze(0), *arguments[1:]

    handle = head.register_forward_pre_hook(pick)
    try:
        with fastest_attention(lora):
            output = lora.base(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
            )
    finally:
        handle.remove()
    logits: torch.Tensor = output.logits
    if logits.ndim != 3 or logits.shape[:2] != (1, len(batch.targets)):
        raise UnsupportedModel(
            f"logits of shape {tuple(logits.shape)} for {len(batch.targets)} target tokens"
        )
    return logits[0]


def _losses_of_part(lora: LoraModel, batch: Batch) -> torch.Tensor:
    return _by_document(target_losses(target_logits(lora, batch), batch.targets), batch)


def _modules_of_head(lora: LoraModel) -> set[torch.nn.Module]:
    """The output head and what is in it: these run at the predicting tokens alone."""
    head: torch.nn.Module | None = lora.base.get_output_embeddings()  # type: ignore[assignment]
    return set() if head is None else set(head.modules())


def _by_document(token_losses: torch.Tensor, batch: Batch) -> torch.Tensor:
    sums = torch.zeros(len(batch.documents), dtype=torch.float64, device=token_losses.device)
    return sums.index_add_(0, batch.owners, token_losses.double())


def _joined(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """One tensor from the rows of its parts, each given with its places among the rows of the whole."""
    order = torch.cat([rows for rows, _ in parts])
    return torch.cat([part for _, part in parts])[order.argsort()]


def _begin_gradients(lora: LoraModel) -> RemovableHandle:
    """Have passes ask for gradients from the first layer with a LoRA on, the output head being the last one.

    Nothing is kept of what comes before, nor is it run backwards. Where a LoRA lies in no layer they begin at
    the embeddings.
    """
    trained = {parameter.linear for parameter in lora.parameters}
    head: torch.nn.Module | None = lora.base.get_output_embeddings()  # type: ignore[assignment]
    places = [*decoder_layers(lora.base).values(), *([] if head is None else [head])]
    own = [trained.intersection(place.modules()) for place in places]
    if trained.difference(*own):
        return lora.base.get_input_embeddings().register_forward_hook(_begin_at_output)
    first = next(place for place, found in zip(places, own, strict=True) if found)
    return first.register_forward_pre_hook(_begin_at_input)


def _begin_at_output(_: torch.nn.Module, __: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return _leaf(output)


def _begin_at_input(_: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return _leaf(arguments[0]), *arguments[1:]


def _leaf(states: torch.Tensor) -> torch.Tensor:
    """The states, their gradients asked for from here on, unless they are already or none are to be taken."""
    # A layer may run twice: the second time, its input is what the first gave.
    begun = states.requires_grad or not torch.is_grad_enabled()
    return states if begun else states.detach().requires_grad_()


def _begin_layer(state: list[_Capture]) -> None:
    """Inputs of the layers before are gone, and their memory may be used again."""
    state[0].seen.clear()


def _capture(
    name: str,
    in_head: bool,
    state: list[_Capture],
    factors: FactorSums | None,
    _: torch.nn.Module,
    arguments: tuple[Any, ...],
    output: torch.Tensor,
) -> None:
    if not state or not torch.is_grad_enabled():  # outside `run`, or of a layer that will run again
        return
    capture = state[0]
    inputs: torch.Tensor = arguments[0]
    batch = capture.batch
    if inputs.shape[:-1] != ((1, len(batch.targets)) if in_head else batch.input_ids.shape):
        raise UnsupportedModel(f"{name} was given {tuple(inputs.shape)}, not (documents, tokens, features)")
    if not output.requires_grad:
        raise UnsupportedModel(f"{name} does not depend on the first layer with a LoRA: it has no gradient")
    inputs = inputs.detach()
    if factors is not None:
        group = _input_group(name, inputs, capture, factors)
        if group == name:
            rows = inputs.flatten(0, 1)
            factors.add_input(group, rows if in_head else rows.index_select(0, batch.real))
    output.register_hook(partial(_on_gradient, name, in_head, inputs, capture, factors))


def _input_group(name: str, inputs: torch.Tensor, capture: _Capture, factors: FactorSums) -> str:
    """The group of `name`, decided when it is first called: whose input had this very memory in this pass."""
    key = (inputs.data_ptr(), inputs.shape, inputs.stride(), inputs.dtype)
    if name not in factors.groups:
        # The hooks hold every input that was seen, so that no address is used twice.
        factors.groups[name] = capture.seen.get(key, name)
    group = factors.groups[name]
    if capture.seen.setdefault(key, name) != group and group != name:
        raise UnsupportedModel(f"{name} and {group} share an input on some calls and not on others")
    return group


def _on_gradient(
    name: str,
    in_head: bool,
    inputs: torch.Tensor,
    capture: _Capture,
    factors: FactorSums | None,
    gradient: torch.Tensor,
) -> None:
    batch = capture.batch
    if factors is not None:
        # The gradient at padding is exactly zero: no target is predicted from there or attends to it.
        factors.add_output(name, gradient.flatten(0, 1), len(batch.targets if in_head else batch.real))
    s, x = gradient.float(), inputs.float()
    if in_head:
        counts = torch.bincount(batch.owners, minlength=len(batch.documents)).tolist()
        pairs = zip(s[0].split(counts), x[0].split(counts), strict=True)
        product = torch.stack([part.T @ rows for part, rows in pairs])
    else:
        product = torch.bmm(s.transpose(1, 2), x)
    if name in capture.gradients:
        capture.gradients[name] += product
    else:
        capture.gradients[name] = product
