"""The model that is evaluated, how it is moved, and how its work is cut into batches."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from atomscope.errors import InvalidInput, SteeringError
from atomscope_workers.models.lora import LoraModel
from atomscope_workers.models.positions import length_boundary
from atomscope_workers.pipeline.plan import micro_batches
from atomscope_workers.steered import StepOf, moved_weights


@dataclass(frozen=True)
class Subject:
    """The audited model in this process; its weights are its own whenever none of `moved` is open."""

    lora: LoraModel
    token_budget: int
    """Tokens of one batch of a forward pass, padding included."""
    checkpoint: Callable[[], None]
    """Called before every batch; what it raises ends the evaluation."""

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The LoRA matrices by parameter name."""
        return {item.name: item.linear.weight for item in self.lora.parameters}

    @contextmanager
    def moved(self, step: StepOf | None) -> Generator[None]:
        """Within it the adapter stands a step away, or, with None, where it stood.

        Raises `InvalidInput` (`strength_too_large`) where the weights' dtype cannot hold the result.
        """
        if step is None:
            yield
            return
        moving = moved_weights(self.weights, step)
        try:
            moving.__enter__()
        except SteeringError as error:
            raise InvalidInput("strength_too_large", str(error)) from error
        try:
            yield
        finally:
            moving.__exit__(None, None, None)

    def batches(self, lengths: Sequence[int], budget: int) -> list[list[int]]:
        """Places in batches of at most `budget` tokens, padding included, the longest first.

        What the model reads otherwise beside something longer is never put beside it.
        """
        known = dict(enumerate(lengths))
        boundary = length_boundary(self.lora.base.config)
        last = boundary if boundary is not None else max(lengths, default=0)
        long = [place for place, length in known.items() if length > last]
        short = [place for place, length in known.items() if length <= last]
        kind = self.lora.device.type
        return [batch for part in (long, short) for batch in micro_batches(part, known, budget, kind)]
